//! Reports and lists of runs, of logs good and bad: drawings are read by an XML parser.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use elektron::report::status::{State, Status};
use elektron::report::{Axis, Look, Run, html, png, svg};
use serde_json::{Value, json};

pub(crate) fn elektron(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_elektron")).args(arguments).output().unwrap()
}

pub(crate) fn succeed(arguments: &[&str]) -> String {
    let out = elektron(arguments);
    assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// A line as a training makes it.
fn line(step: u64, steps: u64) -> Value {
    let x = step as f64 / steps as f64;
    let noise = ((step * 7919) % 101) as f64 / 101.0 - 0.5;
    json!({
        "step": step, "steps": steps, "tokens": step * 2048, "loss": 26.0, "gen_loss": 9.0 - 3.0 * x.sqrt() + 0.2 * noise,
        "disc_loss": 0.40 + 0.02 * noise, "gen_acc": 0.15 * x, "disc_acc": 0.86, "disc_auc": 0.5 + 0.1 * x,
        "disc_precision": 0.2, "disc_recall": 0.01, "fake_rate": 0.14, "lr": 5e-4 * (1.0 - x), "grad_norm": 2.0 + noise,
        "tok_per_s": 1500.0,
    })
}

fn log(lines: impl Iterator<Item = Value>) -> String {
    lines.fold(String::new(), |mut text, line| {
        writeln!(text, "{line}").unwrap();
        text
    })
}

/// A run's folder: its log and its settings.
fn make(dir: &Path, log: &str, config: &Value) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("metrics.jsonl"), log).unwrap();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("run.json"), "{}").unwrap();
    dir.to_owned()
}

fn usual() -> Value {
    json!({ "preset": "tiny", "steps": 400, "learning-rate": 5e-4, "batch-size": 16, "vocab-size": 8192, "output": "out" })
}

/// Every `<svg>` of a page or a file parses, and nothing refers to anything outside.
fn check(text: &str) -> usize {
    let mut count = 0;
    let mut rest = text;
    while let Some(start) = rest.find("<svg") {
        let end = start + rest[start..].find("</svg>").unwrap() + 6;
        let drawing = &rest[start..end];
        let parsed = roxmltree::Document::parse(drawing).unwrap_or_else(|e| panic!("{e}: {drawing}"));
        for node in parsed.descendants() {
            for attribute in node.attributes() {
                assert!(
                    !attribute.value().contains("NaN") && !attribute.value().contains("inf"),
                    "{attribute:?}"
                );
                assert!(!attribute.name().starts_with("on"), "{attribute:?}");
            }
            assert!(!["script", "image", "a", "use", "foreignObject"].contains(&node.tag_name().name()));
        }
        count += 1;
        rest = &rest[end..];
    }
    let without_namespace = text.replace("http://www.w3.org/2000/svg", "");
    for word in ["http:", "https:", "src=", "href=", "url(", "@import", "//cdn"] {
        assert!(!without_namespace.contains(word), "the page contains {word}");
    }
    count
}

pub(crate) fn both(runs: &[Run]) -> String {
    let mut page = String::new();
    for axis in [Axis::Step, Axis::Tokens] {
        let look = Look { axis, ..Look::default() };
        page = html(runs, &look);
        check(&page);
        let drawing = svg(runs, &look);
        assert_eq!(check(&drawing), 1);
        roxmltree::Document::parse(&drawing).unwrap();
        assert_eq!(&png(runs, &look).unwrap()[..8], b"\x89PNG\r\n\x1a\n");
    }
    page
}

#[test]
fn a_report_shows_every_panel_and_what_differs() {
    let scratch = tempfile::tempdir().unwrap();
    let mut lines: Vec<Value> = (1..=40).map(|i| line(i * 10, 400)).collect();
    lines[20]["spike"] = json!(7.5);
    lines[30]["skipped"] = json!(2);
    let mut evals = lines[39].clone();
    evals.as_object_mut().unwrap().remove("step");
    lines.push(json!({ "step": 400, "eval": evals }));
    let one = make(&scratch.path().join("one"), &log(lines.iter().cloned()), &usual());
    let mut config = usual();
    config["learning-rate"] = json!(1e-3);
    config["output"] = json!("elsewhere");
    let two = make(&scratch.path().join("two"), &log((1..=20).map(|i| line(i * 10, 400))), &config);
    let page = both(&Run::load_all(&[one.clone(), two.clone()]).unwrap());
    for title in [
        "Generator loss",
        "Discriminator loss",
        "Generator accuracy",
        "AUC",
        "precision",
        "recall",
        "Learning rate",
        "Gradient norm",
        "Tokens a second",
    ] {
        assert!(page.contains(title), "{title}");
    }
    assert!(!page.contains("GPU memory"), "no line says it");
    assert!(page.contains("recorded runs of tiny") && page.contains("theirs"), "the band and its sentence");
    assert!(page.contains("step 210: spike") && page.contains("step 310: skipped"));
    assert!(page.contains("held out at step 400"));
    assert!(page.contains("<th scope=\"row\">learning-rate</th>") && page.contains("0.001"));
    let runs = Run::load_all(&[one.clone(), two.clone()]).unwrap();
    let different = elektron::report::run::differences(&runs);
    assert_eq!(
        different.iter().map(|d| d.0.as_str()).collect::<Vec<_>>(),
        ["learning-rate"],
        "not where they lie"
    );
    let (page, picture, drawing) =
        (scratch.path().join("r.html"), scratch.path().join("r.png"), scratch.path().join("r.svg"));
    let [one, two, page, picture, drawing] =
        [&one, &two, &page, &picture, &drawing].map(|p| p.to_str().unwrap());
    let said = succeed(&["report", one, two, "--output", page, "--png", picture, "--svg", drawing]);
    for path in [page, picture, drawing] {
        assert!(said.contains(path) && fs::metadata(path).unwrap().len() > 5000);
    }
    let nothing = elektron(&["report", scratch.path().to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("there is no run here"));
}

#[test]
fn plateaus_are_drawn_and_figures_of_earlier_versions_kept_apart() {
    let scratch = tempfile::tempdir().unwrap();
    let baseline =
        json!({ "step": 0, "baseline": { "unigram_loss": 6.25, "unigram_acc": 0.061, "disc_loss": 0.37 } });
    let now = |step: u64| {
        let mut line = line(step, 400);
        let more = json!({
            "gen_mask_loss": 9.0 - 2.9 * (step as f64 / 400.0).sqrt(), "gen_mask_acc": 0.05, "disc_all_acc": 0.87,
            "disc_all_auc": 0.77, "disc_all_precision": 0.3, "disc_all_recall": 0.1, "all_fake_rate": 0.12,
            "disc_constant_loss": 0.371, "disc_score_std": 0.4,
        });
        line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        line
    };
    let lines = || (1..=40).map(|i| now(i * 10));
    let new = make(&scratch.path().join("new"), &log([baseline].into_iter().chain(lines())), &usual());
    let old = make(&scratch.path().join("old"), &log((1..=40).map(|i| line(i * 10, 400))), &usual());
    let page = |paths: &[&PathBuf]| {
        let paths: Vec<PathBuf> = paths.iter().map(|path| (*path).clone()).collect();
        both(&Run::load_all(&paths).unwrap())
    };
    // A drawing by its title, and how many dashed lines it has.
    let dashed = |page: &str, title: &str| {
        let figure = page.split("<figure>").find(|figure| figure.contains(&format!("<h3>{title}</h3>")));
        figure.map(|figure| figure.split("</figure>").next().unwrap().matches("dash").count())
    };
    let one = page(&[&new]);
    for title in [
        "Generator loss at [MASK]",
        "Discriminator loss",
        "Discriminator AUC",
        "Generator accuracy at [MASK]",
    ] {
        assert!(dashed(&one, title).is_some_and(|count| count > 0), "{title}");
    }
    assert!(one.contains("that of word frequencies 6.250"), "{one}");
    assert_eq!(dashed(&one, "Spread of the discriminator’s scores").or(Some(0)), Some(0));
    assert!(dashed(&one, "Discriminator recall, all tokens").is_none(), "the honest figures suffice");
    // The plateau is within the panel, though no loss comes near it.
    let other = page(&[&old]);
    assert!(dashed(&other, "Generator loss at [MASK]").is_none());
    for title in ["AUC", "accuracy", "precision", "recall"] {
        assert!(dashed(&other, &format!("Discriminator {title}")).is_none(), "{title}");
        assert!(dashed(&other, &format!("Discriminator {title}, all tokens")).is_some(), "{title}");
    }
    assert!(other.contains("% of all tokens rightly"));
    page(&[&new, &old]);
    let root = scratch.path().to_str().unwrap();
    let listed = succeed(&["runs", root]);
    let row = |name: &str| listed.lines().find(|line| line.contains(name)).unwrap().to_owned();
    assert!(row("/new").contains("6.100") && row("/new").contains("6.250"), "{listed}");
    assert!(!row("/old").contains("0.600"), "an AUC of another definition: {listed}");
}

#[test]
fn hostile_names_and_settings_stay_text() {
    let scratch = tempfile::tempdir().unwrap();
    let evil = "<script>alert(1)<\u{1}'\"&]]>`";
    // The part behind the slash that cannot stand in a name goes into the settings.
    let mut config = usual();
    config["train"] = json!(["</script><img src=x onerror=alert(1)>"]);
    let lines = log((1..=5).map(|i| line(i, 5)));
    let one = make(&scratch.path().join(evil), &lines, &config);
    config["train"] = json!(["-->\"'><svg onload=alert(1)>"]);
    let two = make(&scratch.path().join("b\"onmouseover=alert(1)"), &lines, &config);
    let runs = Run::load_all(&[one, two]).unwrap();
    let look = Look { title: Some("</title><script>".to_owned()), ..Look::default() };
    for page in [html(&runs, &look), html(&runs, &Look { axis: Axis::Tokens, ..Look::default() })] {
        assert_eq!(page.matches("<script").count(), 2, "the page's own two");
        assert_eq!(page.matches("</script>").count(), 2);
        assert!(!page.contains("<img") && !page.contains("<svg onload"));
        assert!(page.contains("&lt;script&gt;alert(1)"));
    }
    let drawing = svg(&runs, &look);
    let parsed = roxmltree::Document::parse(&drawing).unwrap();
    assert!(
        parsed
            .descendants()
            .any(|n| n.text().is_some_and(|t| t.contains("<script>alert(1)<\u{fffd}'\"&]]>")))
    );
    png(&runs, &look).unwrap();
}

#[test]
fn empty_short_and_broken_logs_are_drawn() {
    let scratch = tempfile::tempdir().unwrap();
    let nothing = make(&scratch.path().join("nothing"), "", &json!({}));
    let point = make(&scratch.path().join("point"), &log([line(1, 9)].into_iter()), &usual());
    let mut gaps: Vec<Value> = (1..=9).map(|i| line(i, 9)).collect();
    gaps[3]["gen_loss"] = Value::Null;
    gaps[8]["grad_norm"] = Value::Null;
    let text = format!("{}{{\"step\":10,\"gen_lo", log(gaps.into_iter()));
    let broken = make(&scratch.path().join("broken"), &text, &usual());
    let null = |step: u64| json!({ "step": step, "gen_loss": null, "disc_loss": null, "lr": 0.0, "grad_norm": null });
    let nan = make(&scratch.path().join("nan"), &log((1..=9).map(null)), &usual());
    fs::write(nan.join("config.json"), "{ half").unwrap();
    for paths in
        [vec![&nothing], vec![&point], vec![&broken], vec![&nan], vec![&nothing, &point, &broken, &nan]]
    {
        let runs = Run::load_all(&paths.into_iter().cloned().collect::<Vec<_>>()).unwrap();
        both(&runs);
    }
    let runs = Run::load_all(&[nothing, broken]).unwrap();
    let page = both(&runs);
    assert!(page.contains("no line yet") && page.contains("1 unreadable line"));
}

#[test]
fn two_hundred_runs_fit_on_a_page() {
    let scratch = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..200)
        .map(|i| {
            let mut config = usual();
            config["seed"] = json!(i);
            make(
                &scratch.path().join(format!("seed-{i}")),
                &log((1..=100).map(|s| line(s * 10, 1000))),
                &config,
            )
        })
        .collect();
    let runs = Run::load_all(&paths).unwrap();
    let page = html(&runs, &Look::default());
    check(&page);
    assert!(page.len() < 4 << 20, "{} bytes", page.len());
    assert!(page.contains("and 192 more in grey") && page.contains("seed-199"));
}

/// A log of a million lines takes five times as long.
#[test]
fn a_long_log_makes_a_small_page() {
    let one = line(1, 1).to_string();
    let body = one.strip_prefix("{\"step\":1").unwrap();
    let mut text = String::new();
    for step in 1..=200_000 {
        writeln!(text, "{{\"step\":{step}{body}").unwrap();
    }
    let mut run = Run::default();
    run.read(text.as_bytes()).unwrap();
    assert_eq!(run.steps.len(), 200_000);
    let page = html(&[run], &Look::default());
    assert!(page.len() < 1 << 20, "{} bytes", page.len());
}

#[test]
fn the_list_of_runs_tells_how_they_stand() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join("sweep").join(name);
    let lines = log((1..=4).map(|i| line(i * 10, 40)));
    let checkpoint = |dir: &Path, step: u64| {
        fs::create_dir_all(dir.join("checkpoints")).unwrap();
        fs::write(dir.join(format!("checkpoints/step-{step:09}.safetensors")), "").unwrap();
    };
    let finished = make(&at("finished"), &lines, &usual());
    checkpoint(&finished, 40);
    for name in ["generator", "discriminator"] {
        fs::create_dir(finished.join(name)).unwrap();
        fs::write(finished.join(name).join("model.safetensors"), "").unwrap();
    }
    let half = log((1..=2).map(|i| line(i * 10, 40)));
    let stopped = make(&at("stopped"), &half, &usual());
    checkpoint(&stopped, 20);
    let crashed = make(&at("deeper/crashed"), &(half.clone() + "{\"step\":30,"), &usual());
    checkpoint(&crashed, 10);
    let running = make(&at("running"), &half, &usual());
    let lock = fs::File::create(running.join("run.lock")).unwrap();
    lock.lock().unwrap();
    let state = |dir: &Path| Status::of(dir).unwrap().state;
    assert_eq!(
        [&finished, &stopped, &crashed, &running].map(|d| state(d)),
        [State::Finished, State::Stopped, State::Crashed, State::Running]
    );
    drop(lock);
    assert_eq!(state(&running), State::Crashed, "a lock that nobody holds says nothing");
    let root = scratch.path().to_str().unwrap();
    let listed: Value = serde_json::from_str(&succeed(&["runs", root, "--json"])).unwrap();
    let paths: Vec<&str> = listed.as_array().unwrap().iter().map(|r| r["path"].as_str().unwrap()).collect();
    assert_eq!(paths.len(), 4);
    assert!(paths.is_sorted());
    assert_eq!(
        (&listed[0]["state"], &listed[0]["step"], &listed[0]["steps"]),
        (&json!("crashed"), &json!(20), &json!(40))
    );
    assert!(
        listed[0]["metrics"]["gen_loss"].as_f64().unwrap() > 0.0
            && listed[0]["age_s"].as_u64().unwrap() < 600
    );
    let text = succeed(&["runs", root]);
    assert!(text.contains("finished") && text.contains("40 of 40"), "{text}");
    assert!(succeed(&["runs", stopped.join("checkpoints").to_str().unwrap()]).contains("no run"));
}
