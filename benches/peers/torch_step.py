"""Times one CPU training step of replaced token detection: txtai's own class (--style txtai) or the best PyTorch we wrote
(--style google: masked positions only, Gumbel-max). One case a process. Needs: pip install torch transformers txtai."""
import argparse, json, os, resource, statistics, sys, time
ap = argparse.ArgumentParser()
ap.add_argument("--style", choices=["txtai", "google"], default="txtai")
ap.add_argument("--batch", type=int, default=8)
ap.add_argument("--seq", type=int, default=128)
ap.add_argument("--genhidden", type=int, default=256)
ap.add_argument("--disc", choices=["token", "pre"], default="token")
ap.add_argument("--attn", default="eager")
ap.add_argument("--bf16", action="store_true")
ap.add_argument("--compile", action="store_true")
ap.add_argument("--steps", type=int, default=10)
ap.add_argument("--warmup", type=int, default=2)
ap.add_argument("--threads", type=int, default=2)
a = ap.parse_args()
os.environ["OMP_NUM_THREADS"] = str(a.threads)
import torch, transformers
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForTokenClassification, ElectraForPreTraining
torch.set_num_threads(a.threads)
torch.manual_seed(0)
gcfg = dict(vocab_size=30522, embedding_size=128, num_hidden_layers=12, max_position_embeddings=512,
            hidden_size=a.genhidden, num_attention_heads=max(1, a.genhidden // 64), intermediate_size=4 * a.genhidden,
            attn_implementation=a.attn)
dcfg = dict(gcfg, hidden_size=256, num_attention_heads=4, intermediate_size=1024)
gen = ElectraForMaskedLM(ElectraConfig(**gcfg))
dc = ElectraConfig(num_labels=2, **dcfg)
disc = (ElectraForTokenClassification if a.disc == "token" else ElectraForPreTraining)(dc)
B, S = a.batch, a.seq
g = torch.Generator().manual_seed(1)
orig = torch.randint(1000, 30522, (B, S), generator=g)
orig[:, 0] = 101; orig[:, -1] = 102
K = round(0.15 * S)
pos = torch.stack([torch.randperm(S - 2, generator=g)[:K] + 1 for _ in range(B)]).sort(1).values
masked = orig.clone().scatter_(1, pos, 103)
labels = torch.full_like(orig, -100).scatter_(1, pos, orig.gather(1, pos))
att = torch.ones_like(orig); tt = torch.zeros_like(orig)

class GatherRTD(torch.nn.Module):
    """Own implementation: LM head only at the masked positions, gumbel-max sampling, BCE discriminator."""
    def __init__(s, gen, disc, weight=50.0):
        super().__init__(); s.gen, s.disc, s.weight = gen, disc, weight
        s.disc.set_input_embeddings(s.gen.get_input_embeddings())
    def forward(s, input_ids, pos, target, orig, attention_mask, token_type_ids):
        h = s.gen.electra(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)[0]
        h = h.gather(1, pos.unsqueeze(-1).expand(-1, -1, h.shape[-1]))
        logits = s.gen.generator_lm_head(s.gen.generator_predictions(h)).float()
        gl = torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), target.reshape(-1))
        with torch.no_grad():
            u = torch.rand_like(logits)
            tok = (logits - torch.log(-torch.log(u + 1e-9) + 1e-9)).argmax(-1)
        dids = orig.scatter(1, pos, tok)
        dl = (dids != orig).long()
        out = s.disc(dids, labels=dl, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return gl + s.weight * out[0], None

if a.style == "txtai":
    from txtai.models import TokenDetection
    model = TokenDetection(gen, disc, None)
    kw = dict(input_ids=masked, labels=labels, attention_mask=att, token_type_ids=tt)
else:
    model = GatherRTD(gen, disc)
    kw = dict(input_ids=masked, pos=pos, target=orig.gather(1, pos), orig=orig, attention_mask=att, token_type_ids=tt)
model.train()
opt = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.01, eps=1e-6, fused=True)
nparam = sum(p.numel() for p in model.parameters())
run = torch.compile(model) if a.compile else model
times, parts = [], []
t00 = time.time()
for i in range(a.warmup + a.steps):
    t0 = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=a.bf16):
        loss = run(**kw)[0]
    t1 = time.perf_counter(); loss.backward()
    t2 = time.perf_counter(); opt.step(); opt.zero_grad(set_to_none=True)
    t3 = time.perf_counter()
    if i == 0: first = t3 - t0
    if i >= a.warmup: times.append(t3 - t0); parts.append((t1 - t0, t2 - t1, t3 - t2))
med = statistics.median(times)
r = dict(style=a.style, batch=B, seq=S, genhidden=a.genhidden, disc=a.disc, attn=a.attn, bf16=a.bf16, compile=a.compile, threads=a.threads,
         params=nparam, first_s=round(first, 3), min_s=round(min(times), 4), median_s=round(med, 4), max_s=round(max(times), 4),
         tok_s_median=round(B * S / med), tok_s_best=round(B * S / min(times)),
         fwd_bwd_opt_median=[round(statistics.median(p[j] for p in parts), 4) for j in range(3)],
         peak_rss_mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024), loss_last=round(float(loss), 3),
         torch=torch.__version__, transformers=transformers.__version__)
print(json.dumps(r))
