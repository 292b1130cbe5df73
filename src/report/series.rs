//! Columns into lines: smoothed, and never more points than a screen can show.

/// Mean over `window` neighbouring values, half on each side; NaN stays where it was and counts for nothing.
pub(super) fn smooth(values: &[f64], window: usize) -> Vec<f64> {
    let mut sums = Vec::with_capacity(values.len() + 1);
    let (mut sum, mut count) = (0.0, 0.0);
    sums.push((sum, count));
    for value in values {
        if value.is_finite() {
            (sum, count) = (sum + value, count + 1.0);
        }
        sums.push((sum, count));
    }
    let half = window / 2;
    let mean = |(i, value): (usize, &f64)| {
        let (from, to) = (sums[i.saturating_sub(half)], sums[(i + half + 1).min(values.len())]);
        if value.is_finite() { (to.0 - from.0) / (to.1 - from.1) } else { f64::NAN }
    };
    values.iter().enumerate().map(mean).collect()
}

/// Lines of a fortieth of the run each.
pub(super) fn usual_window(lines: usize) -> usize {
    lines / 40
}

/// Unbroken pieces of a line, at most two points (lowest and highest) for each of `buckets` equal parts of the x axis:
/// a spike of one step is still seen among a million.
pub(super) fn pieces(xs: &[f64], ys: &[f64], buckets: usize) -> Vec<Vec<(f64, f64)>> {
    let first = xs.iter().copied().find(|x| x.is_finite()).unwrap_or(0.0);
    let last = xs.iter().rev().copied().find(|x| x.is_finite()).unwrap_or(1.0);
    let width = ((last - first) / buckets as f64).max(f64::MIN_POSITIVE);
    let thin = xs.len() > 2 * buckets;
    let (mut pieces, mut piece) = (Vec::new(), Vec::new());
    let (mut bucket, mut held): (usize, Vec<(f64, f64)>) = (0, Vec::new());
    let mut gap = false;
    let flush = |held: &mut Vec<(f64, f64)>, piece: &mut Vec<(f64, f64)>| {
        let lowest = held.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1));
        let highest = held.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1));
        if let (Some(a), Some(b)) = (lowest, highest) {
            let (a, b) = if a.0 <= b.0 { (a, b) } else { (b, a) };
            piece.push(a);
            if a != b {
                piece.push(b);
            }
        }
        held.clear();
    };
    for (&x, &y) in xs.iter().zip(ys) {
        if !x.is_finite() || !y.is_finite() {
            gap = true;
            continue;
        }
        let here = if thin { ((x - first) / width) as usize } else { bucket + 1 };
        if here != bucket {
            flush(&mut held, &mut piece);
            // Among many lines a gap that no pixel shows is none.
            if gap && (!thin || here > bucket + 1) && !piece.is_empty() {
                pieces.push(std::mem::take(&mut piece));
            }
            (bucket, gap) = (here, false);
        }
        held.push((x, y));
    }
    flush(&mut held, &mut piece);
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_is_a_centred_mean() {
        assert_eq!(smooth(&[1.0, 2.0, 3.0, 4.0], 0), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(smooth(&[1.0, 2.0, 6.0, 4.0], 3), [1.5, 3.0, 4.0, 5.0]);
        let with_gap = smooth(&[1.0, f64::NAN, 3.0], 3);
        assert!(with_gap[1].is_nan() && with_gap[0] == 1.0 && with_gap[2] == 3.0);
    }

    #[test]
    fn a_spike_survives_thinning() {
        let xs: Vec<f64> = (0..100_000).map(f64::from).collect();
        let mut ys = vec![1.0; xs.len()];
        ys[77_777] = 9.0;
        let pieces = pieces(&xs, &ys, 200);
        assert_eq!(pieces.len(), 1);
        assert!(pieces[0].len() <= 402, "{}", pieces[0].len());
        assert!(pieces[0].contains(&(77_777.0, 9.0)));
        assert!(pieces[0].is_sorted_by_key(|point| point.0));
    }

    #[test]
    fn a_gap_breaks_the_line() {
        let pieces = pieces(&[1.0, 2.0, 3.0, 4.0], &[1.0, f64::NAN, 3.0, 4.0], 100);
        assert_eq!(pieces, [vec![(1.0, 1.0)], vec![(3.0, 3.0), (4.0, 4.0)]]);
    }
}
