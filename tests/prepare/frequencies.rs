//! How often each token occurs: stored with shards, counted where it is not, for parts and mixtures
//! of corpora.

use std::collections::BTreeMap;
use std::sync::Arc;

use elektron::data::pack::{Merge, Rows};
use elektron::data::prepare::find;
use elektron::data::split::{Part, split};
use twox_hash::xxhash3_64::Hasher as Checksum;

use super::*;

const HEADER: usize = 256;
/// Where the header has the checksum of the rest, the words of the section of frequencies, and its
/// own checksum.
const CHECKSUM: usize = 80;
const FREQUENCIES: usize = 168;
const HEADER_SUM: usize = 248;

/// Counted token by token from the paragraphs of a part.
fn counted(part: &Part) -> BTreeMap<u32, f64> {
    let mut counts = BTreeMap::new();
    for paragraph in 0..part.paragraphs() {
        let mut ids = Vec::new();
        part.copy_paragraph(paragraph, 0, usize::MAX, &mut ids);
        ids.into_iter().for_each(|id| *counts.entry(id).or_default() += 1.0);
    }
    counts
}

fn rows(place: &Place, parts: Vec<(Part, f64)>) -> Rows {
    Rows::mixed(parts, place.tokenizer.special(), Merge::None, 64, 1).unwrap()
}

fn check(place: &Place, parts: &[(Part, f64)]) {
    let mut want = vec![0.0; place.tokenizer.vocab_size()];
    for (part, weight) in parts {
        counted(part).into_iter().for_each(|(id, count)| want[id as usize] += weight * count);
    }
    let got = rows(place, parts.to_vec()).frequencies(want.len());
    for (id, (got, want)) in got.iter().zip(&want).enumerate() {
        assert!((got - want).abs() <= 1e-9 * want, "token {id}: {got} for {want}");
    }
    assert!(want.iter().filter(|&&count| count > 0.0).count() > 500);
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The shard as earlier versions wrote it.
fn without_frequencies(mut bytes: Vec<u8>) -> Vec<u8> {
    let words = word(&bytes, FREQUENCIES) as usize;
    bytes.truncate(bytes.len() - 8 * words);
    let sum = Checksum::oneshot(&bytes[HEADER..]);
    bytes[CHECKSUM..CHECKSUM + 8].copy_from_slice(&sum.to_le_bytes());
    bytes[FREQUENCIES..FREQUENCIES + 8].fill(0);
    let sum = Checksum::oneshot(&bytes[..HEADER_SUM]);
    bytes[HEADER_SUM..HEADER].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[test]
fn frequencies_are_those_of_the_tokens() {
    let place = Place::new(Spec { dedup: Dedup::None, shard_bytes: 128 << 10 });
    place.write("a.txt", &documents(0..600));
    place.write("b.txt", &documents(600..700));
    let prepared = |file| Arc::new(place.prepare(&[file], "shards").unwrap().0);
    let (a, b) = (prepared("a.txt"), prepared("b.txt"));
    assert!(a.shards() >= 2);
    let stored = shards(&place.path("shards")).values().filter(|shard| word(shard, FREQUENCIES) > 0).count();
    assert!(stored >= 2, "{stored} shards have a section of frequencies");
    check(&place, &[(Part::whole(a.clone()), 1.0)]);
    // A mixture, and what is trained on and held out at small and large shares.
    check(&place, &[(Part::whole(a.clone()), 0.5), (Part::whole(b.clone()), 3.0)]);
    for share in [0.05, 0.3, 0.9] {
        let (kept, held_out) = split(&a, share);
        assert!(kept.tokens() > 0 && held_out.tokens() > 0);
        check(&place, &[(kept, 1.0)]);
        check(&place, &[(held_out, 1.0), (split(&b, share).0, 2.0)]);
    }
    // Ids beyond a vocabulary, which training refuses, are left out.
    let all = rows(&place, vec![(Part::whole(a.clone()), 1.0)]);
    assert_eq!(all.frequencies(1000), all.frequencies(8192)[..1000]);
}

#[test]
fn shards_of_earlier_versions_are_counted() {
    let place = Place::new(Spec { dedup: Dedup::None, shard_bytes: 128 << 10 });
    place.write("a.txt", &documents(0..300));
    let (dataset, _) = place.prepare(&["a.txt"], "shards").unwrap();
    let want = rows(&place, vec![(dataset.into(), 1.0)]).frequencies(8192);
    let mut changed = 0;
    for (name, bytes) in shards(&place.path("shards")) {
        let earlier = without_frequencies(bytes.clone());
        changed += usize::from(earlier.len() < bytes.len());
        fs::write(place.path("shards").join(name), earlier).unwrap();
    }
    assert!(changed > 0);
    let before = shards(&place.path("shards"));
    let (dataset, progress) = place.prepare(&["a.txt"], "shards").unwrap();
    assert_eq!(progress.shards_reused, before.len(), "they are not made anew");
    assert_eq!(shards(&place.path("shards")), before);
    assert_eq!(rows(&place, vec![(dataset.into(), 1.0)]).frequencies(8192), want);
}

#[test]
fn shards_are_found_without_tokenizing() {
    let place = Place::new(Spec::default());
    place.write("a.txt", &documents(0..40));
    let source = TextSource::new(&[place.path("a.txt").to_str().unwrap()], &["text".to_owned()]).unwrap();
    let found = || find(&source, &place.tokenizer, &place.path("shards"), Dedup::None);
    assert!(found().is_none() && !place.path("shards").exists());
    // The index names a file only when it had been left alone for two seconds.
    let (dataset, deadline) =
        (place.prepare(&["a.txt"], "shards").unwrap().0, Instant::now() + Duration::from_secs(20));
    while found().is_none() {
        assert!(Instant::now() < deadline, "the shards are not found");
        std::thread::sleep(Duration::from_millis(300));
        place.prepare(&["a.txt"], "shards").unwrap();
    }
    assert_eq!(tokens(&found().unwrap()), tokens(&dataset));
    assert!(find(&source, &place.tokenizer, &place.path("shards"), Dedup::Exact).is_none(), "other settings");
    place.write("a.txt", &documents(1..40));
    assert!(found().is_none(), "the text has changed");
}
