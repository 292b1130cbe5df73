//! How the benches compare their records.

#[allow(dead_code)] // what the benches alone use
#[path = "../benches/common/record.rs"]
mod record;

use record::{Case, Machine, Ratio, Record, Verdict, comparison, warnings};

fn record(cases: Vec<Case>, threads: usize) -> Record {
    Record {
        bench: "ops".to_owned(),
        device: "cpu".to_owned(),
        machine: Machine { cpu: "a processor".to_owned(), threads, gpu: None },
        version: "0.1.0 (abc)".to_owned(),
        date: "2026-11-25".to_owned(),
        cases,
    }
}

fn case(name: &str, unit: &str, samples: &[f64]) -> Case {
    Case::new(name, unit, samples.to_vec())
}

#[test]
fn a_case_is_median_and_spread_of_its_rounds() {
    let case = case("a", "ms", &[3.0, 1.0, 2.0, 9.0, 4.0]);
    assert_eq!((case.median, case.least, case.most, case.rounds), (3.0, 1.0, 9.0, 5));
}

#[test]
fn ratios_are_marked_outside_both_spreads_alone() {
    let old = case("a", "ms", &[9.0, 10.0, 11.0]);
    let of = |samples: &[f64]| Ratio::of(&old, &case("a", "ms", samples));
    let half = of(&[4.5, 5.0, 5.5]);
    assert_eq!((half.median, half.least, half.most), (0.5, 4.5 / 11.0, 5.5 / 9.0));
    assert_eq!(half.verdict, Verdict::Better);
    assert_eq!(of(&[19.0, 20.0, 21.0]).verdict, Verdict::Worse);
    assert_eq!(of(&[9.5, 10.5, 12.0]).verdict, Verdict::Within);
    // The old median lies within the new spread: one wide round is enough for doubt.
    assert_eq!(of(&[4.5, 5.0, 12.0]).verdict, Verdict::Within);
    // Of rates more is better.
    let (slow, fast) = (case("a", "tok/s", &[9.0, 10.0, 11.0]), case("a", "tok/s", &[19.0, 20.0, 21.0]));
    assert_eq!(Ratio::of(&slow, &fast).verdict, Verdict::Better);
    assert_eq!(Ratio::of(&fast, &slow).verdict, Verdict::Worse);
}

#[test]
fn records_are_compared_case_by_case() {
    let old = record(vec![case("a", "ms", &[10.0]), case("b", "ms", &[10.0])], 2);
    let new = record(vec![case("a", "ms", &[5.0]), case("b", "s", &[1.0]), case("c", "ms", &[1.0])], 4);
    let text = comparison(&old, &new);
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(line("a ").contains("0.500 (0.500 to 0.500)  better"), "{text}");
    assert!(line("b ").contains("is not in that record"), "another unit is another case: {text}");
    assert!(line("c ").contains("is not in that record"), "{text}");
    assert!(line("warning").contains("threads: 2 then, 4 now"), "{text}");
    assert!(warnings(&old, &record(Vec::new(), 2)).is_empty());
}

#[test]
fn a_record_is_read_as_it_was_written() {
    let written = record(vec![case("linear 8 × 8", "ms", &[0.1, 0.25, 1.0 / 3.0])], 2);
    let text = serde_json::to_string_pretty(&written).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), written);
}
