//! Where a run's time goes, and how long it will take.
//!
//! The loop says after each part of its work which part that was; the time since the mark before belongs to it. So the
//! time left is a sum of what is left of each part: steps, evaluations, checkpoints. The first step of a process, which
//! compiles kernels and touches memory for the first time, says nothing about the others and is kept apart.

use std::time::Instant;

/// What time is spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Loading, forward, backward, update.
    Step,
    /// Held-out evaluation.
    Evaluation,
    /// What a checkpoint keeps the training waiting for.
    Saving,
}

/// How often the parts come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    /// Steps in all.
    pub steps: u64,
    /// Steps between evaluations; 0 for one at the end.
    pub eval_every: u64,
    /// Whether there is held-out text.
    pub evaluates: bool,
    /// Forward passes of an evaluation over those of a step: a guess until one was seen.
    pub eval_batches_per_step: f64,
    /// Steps between checkpoints.
    pub save_every: u64,
}

/// Seconds after which a step counts for a third: the rate follows what the machine does now.
const MEMORY_S: f64 = 60.0;

/// Times of one process.
#[derive(Debug)]
pub struct Timing {
    plan: Plan,
    start: Instant,
    /// Seconds at the last mark.
    last: f64,
    begun_at: u64,
    step: u64,
    /// Seconds and number of steps, the older the lighter.
    recent: (f64, f64),
    first_step: Option<f64>,
    evaluations: (f64, u64),
    savings: (f64, u64),
    /// Seconds of steps since the last line of the log.
    line: f64,
    stepping: f64,
}

impl Timing {
    /// Begins now, after `step` steps.
    pub fn new(plan: Plan, step: u64) -> Self {
        Self {
            plan,
            start: Instant::now(),
            last: 0.0,
            begun_at: step,
            step,
            recent: (0.0, 0.0),
            first_step: None,
            evaluations: (0.0, 0),
            savings: (0.0, 0),
            line: 0.0,
            stepping: 0.0,
        }
    }

    /// What has just ended.
    pub fn mark(&mut self, part: Part) {
        self.mark_at(part, self.start.elapsed().as_secs_f64());
    }

    /// The same, on a clock of the caller: seconds since the beginning.
    pub fn mark_at(&mut self, part: Part, now: f64) {
        let seconds = (now - self.last).max(0.0);
        self.last = now;
        match part {
            Part::Evaluation => self.evaluations = (self.evaluations.0 + seconds, self.evaluations.1 + 1),
            Part::Saving => self.savings = (self.savings.0 + seconds, self.savings.1 + 1),
            Part::Step => {
                self.step += 1;
                self.line += seconds;
                self.stepping += seconds;
                if self.first_step.is_none() {
                    self.first_step = Some(seconds);
                    return;
                }
                let keep = (-seconds / MEMORY_S).exp();
                self.recent = (self.recent.0 * keep + seconds, self.recent.1 * keep + 1.0);
            }
        }
    }

    /// The steps after `step` are to be made again.
    pub fn go_back(&mut self, step: u64) {
        self.step = step;
    }

    /// Seconds of steps alone since this was asked last.
    pub fn take_line(&mut self) -> f64 {
        std::mem::take(&mut self.line)
    }

    /// Seconds to the end of the run, its last evaluation and checkpoint included.
    pub fn eta_s(&self) -> f64 {
        let step = match self.recent {
            (seconds, steps) if steps > 0.0 => seconds / steps,
            _ => self.first_step.unwrap_or(0.0),
        };
        let Plan { steps, eval_every, evaluates, eval_batches_per_step, save_every } = self.plan;
        let all_left = |every: u64, (seconds, done): (f64, u64), guess: f64| {
            let each = if done > 0 { seconds / done as f64 } else { guess };
            // By those done: one that is due at this very step is still to come.
            each * occasions(self.begun_at, steps, every).saturating_sub(done) as f64
        };
        let stepping = step * steps.saturating_sub(self.step) as f64;
        // Forward alone is a third of a step.
        let guess = step * eval_batches_per_step / 3.0;
        let evaluating = if evaluates { all_left(eval_every, self.evaluations, guess) } else { 0.0 };
        stepping + evaluating + all_left(save_every, self.savings, 0.0)
    }

    /// Seconds of this process: in all, of steps, of evaluations, of checkpoints.
    pub fn seconds(&self) -> [f64; 4] {
        [self.start.elapsed().as_secs_f64(), self.stepping, self.evaluations.0, self.savings.0]
    }
}

/// Times that something is done every so many steps, from a step to the end, and once there.
fn occasions(step: u64, steps: u64, every: u64) -> u64 {
    let by = |step: u64| step.checked_div(every).unwrap_or(0);
    by(steps.saturating_sub(1)).saturating_sub(by(step)) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run on a synthetic clock: a slow first step, then even ones with pauses. Returns (now, time left as told) at
    /// each step, and when it really ended.
    fn simulate(plan: Plan, step_s: impl Fn(u64) -> f64, eval_s: f64, save_s: f64) -> (Vec<(f64, f64)>, f64) {
        let mut timing = Timing::new(plan, 0);
        let (mut now, mut told) = (0.0, Vec::new());
        for step in 1..=plan.steps {
            now += step_s(step);
            timing.mark_at(Part::Step, now);
            told.push((now, timing.eta_s()));
            let last = step == plan.steps;
            if plan.evaluates && plan.eval_every > 0 && step % plan.eval_every == 0 && !last {
                now += eval_s;
                timing.mark_at(Part::Evaluation, now);
            }
            if step % plan.save_every == 0 || last {
                now += save_s;
                timing.mark_at(Part::Saving, now);
            }
        }
        if plan.evaluates {
            now += eval_s;
        }
        (told, now)
    }

    fn worst_after_two_minutes((told, end): (Vec<(f64, f64)>, f64)) -> f64 {
        let error = |&(now, left): &(f64, f64)| (left - (end - now)).abs() / (end - now).max(1.0);
        // By this order NaN is the largest.
        told.iter().filter(|(now, _)| *now >= 120.0).map(error).max_by(f64::total_cmp).unwrap_or(0.0)
    }

    #[test]
    fn the_time_left_is_right_within_a_tenth_after_two_minutes() {
        let plan = Plan {
            steps: 20_000,
            eval_every: 500,
            evaluates: true,
            eval_batches_per_step: 12.0,
            save_every: 300,
        };
        // Kernels are compiled for 45 s in the first step; steps of 0.2 s with some unrest; pauses of 20 s and 6 s.
        let unrest =
            |step: u64| if step == 1 { 45.0 } else { 0.2 + 0.02 * ((step * 7919) % 11) as f64 / 10.0 };
        let error = worst_after_two_minutes(simulate(plan, unrest, 20.0, 6.0));
        // Before the first evaluation its length is a guess: 12 forward passes of a third of a step, not 20 s.
        let seen = simulate(Plan { eval_every: 200, ..plan }, unrest, 20.0, 6.0);
        let after_first = worst_after_two_minutes(seen);
        assert!(after_first < 0.1, "{after_first}");
        assert!(error < 0.4, "{error}");
        let usual = worst_after_two_minutes(simulate(plan, unrest, 0.84, 6.0));
        assert!(usual < 0.1, "{usual}");
        let plain = Plan { evaluates: false, eval_every: 0, ..plan };
        let error = worst_after_two_minutes(simulate(plain, unrest, 0.0, 6.0));
        assert!(error < 0.1, "{error}");
    }

    #[test]
    fn long_steps_are_told_after_a_few() {
        let plan = Plan { steps: 200, save_every: 1000, ..Plan::default() };
        let error =
            worst_after_two_minutes(simulate(plan, |step| if step == 1 { 90.0 } else { 20.0 }, 0.0, 0.0));
        assert!(error < 0.1, "{error}");
    }

    #[test]
    fn a_machine_that_becomes_slower_is_noticed() {
        let plan = Plan { steps: 4000, save_every: 10_000, ..Plan::default() };
        let (told, end) = simulate(plan, |step| if step < 1000 { 0.5 } else { 1.0 }, 0.0, 0.0);
        let (now, left) = told[1400];
        assert!((left - (end - now)).abs() / (end - now) < 0.1, "{left} of {}", end - now);
    }

    #[test]
    fn pauses_are_counted() {
        assert_eq!(occasions(0, 100, 0), 1);
        assert_eq!(occasions(0, 100, 30), 4, "30, 60, 90 and the end");
        assert_eq!(occasions(60, 100, 30), 2);
        assert_eq!(occasions(0, 100, 50), 2, "50 and the end, which is 100");
        let mut timing = Timing::new(Plan { steps: 10, save_every: 100, ..Plan::default() }, 0);
        timing.mark_at(Part::Step, 1.0);
        timing.mark_at(Part::Saving, 5.0);
        timing.mark_at(Part::Step, 6.0);
        assert_eq!((timing.take_line(), timing.take_line()), (2.0, 0.0));
        assert_eq!(timing.seconds()[1..], [2.0, 0.0, 4.0]);
    }
}
