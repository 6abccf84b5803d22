//! Decides from a measurement whether guests run faster under KVM or under emulation. Pure.

use super::costs::{Costs, Measurement};

/// What a guest does from its kernel's start to the end of its first command.
struct Work {
    loops: f64,
    pagings: f64,
    faults: f64,
    exits: f64,
}

/// A start of Debian 12's kernel, 1 vCPU, 1 GiB, and `true`. `docs/design/0031-kvm.md` says how each was counted.
const START: Work = Work { loops: 370e6, pagings: 10e3, faults: 15e3, exits: 20e3 };

/// How many times as long as the processor itself emulation takes for a loop of a shell in a guest. Everything else it
/// does for free here, so that KVM is chosen only where it is certainly faster.
const EMULATION: f64 = 27.0;

/// Samples of a slow KVM that differ by more than this were disturbed by something other than KVM.
const MAX_SPREAD: f64 = 4.0;
/// Samples that must agree before KVM counts as slow.
pub(super) const MIN_SAMPLES: usize = 5;

/// Estimated durations of a start, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    pub(super) kvm: f64,
    pub(super) emulation: f64,
}

impl Estimate {
    pub(super) fn of(costs: &Costs) -> Self {
        let Costs { host_loop_ns, loop_ns, paging_ns, fault_ns, exit_ns } = *costs;
        let kvm = START.loops * loop_ns
            + START.pagings * paging_ns
            + START.faults * fault_ns
            + START.exits * exit_ns;
        Self { kvm: kvm / 1e9, emulation: START.loops * host_loop_ns * EMULATION / 1e9 }
    }

    pub(super) fn favours_kvm(&self) -> bool {
        self.kvm <= self.emulation
    }
}

/// What a measurement shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Finding {
    pub(super) best: Costs,
    pub(super) estimate: Estimate,
    /// Another measurement on this host would not show anything else.
    pub(super) certain: bool,
}

/// Judges the best of the samples: whatever disturbs a sample makes it slower. `None`: there are no samples.
pub(super) fn judge(measurement: &Measurement) -> Option<Finding> {
    let best = measurement.best()?;
    let estimate = Estimate::of(&best);
    let certain = estimate.favours_kvm() || agree(&measurement.samples);
    Some(Finding { best, estimate, certain })
}

fn agree(samples: &[Costs]) -> bool {
    let times = samples.iter().map(|sample| Estimate::of(sample).kvm);
    let (least, most) =
        times.fold((f64::INFINITY, 0.0_f64), |(least, most), time| (least.min(time), most.max(time)));
    samples.len() >= MIN_SAMPLES && most <= least * MAX_SPREAD
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample([host_loop_ns, loop_ns, paging_ns, fault_ns, exit_ns]: [f64; 5]) -> Costs {
        Costs { host_loop_ns, loop_ns, paging_ns, fault_ns, exit_ns }
    }

    fn of(samples: &[[f64; 5]]) -> Finding {
        judge(&Measurement { samples: samples.iter().copied().map(sample).collect() }).unwrap()
    }

    /// A nested KVM that interprets what guests do in kernel mode; host with 2 processors and a load of 13.
    const INTERPRETED: [[f64; 5]; 5] = [
        [0.23635, 5067.87, 36427.68, 5187.50, 89494.38],
        [0.24276, 4305.39, 59596.39, 5075.85, 49654.96],
        [0.24587, 3864.64, 48032.89, 5089.30, 8761.07],
        [0.24196, 4029.17, 7398.99, 5024.29, 66310.80],
        [0.23835, 4061.88, 7505.95, 5118.02, 8933.92],
    ];

    #[test]
    fn a_kvm_that_interprets_is_certainly_not_chosen() {
        let finding = of(&INTERPRETED);
        assert!(!finding.estimate.favours_kvm() && finding.certain, "{finding:?}");
        assert!(finding.estimate.kvm > 100.0 * finding.estimate.emulation, "{finding:?}");
    }

    /// KVM on a processor that QEMU emulates on the same host, with a load of 15.
    const EMULATED_PROCESSOR: [[f64; 5]; 5] = [
        [1.97714, 292.81584, 55101.87, 293942.93, 206754.61],
        [1.96632, 4.24032, 26497.17, 161651.37, 72514.93],
        [1.97774, 3.64184, 2984.90, 225040.81, 115313.76],
        [50.79734, 5.03950, 3049.70, 231311.80, 169120.89],
        [1.96434, 3.21380, 2954.16, 217977.54, 191043.48],
    ];

    #[test]
    fn a_real_kvm_is_chosen_though_the_host_is_slow_and_busy() {
        let finding = of(&EMULATED_PROCESSOR);
        assert!(finding.estimate.favours_kvm() && finding.certain, "{finding:?}");
        // The first sample alone, by which earlier releases decided, says something else.
        assert!(!of(&EMULATED_PROCESSOR[..1]).estimate.favours_kvm());
    }

    /// Assumed, not measured: a loop at the processor's speed, and exits that take longer than those of current processors.
    /// The second is a guest of a guest, whose exits take ten times as long.
    #[test]
    fn hardware_is_chosen_also_where_it_is_nested() {
        for hardware in [[0.28, 0.28, 400.0, 1500.0, 3000.0], [0.3, 0.31, 700.0, 25_000.0, 40_000.0]] {
            let finding = of(&[hardware]);
            assert!(finding.estimate.favours_kvm() && finding.certain, "{finding:?}");
        }
    }

    #[test]
    fn one_good_sample_among_disturbed_ones_suffices() {
        let good = [0.28, 0.28, 400.0, 1500.0, 3000.0];
        let disturbed = [0.28, 800.0, 400_000.0, 300_000.0, 900_000.0];
        assert!(!of(&[disturbed]).estimate.favours_kvm());
        let finding = of(&[disturbed, disturbed, good, disturbed]);
        assert!(finding.estimate.favours_kvm() && finding.certain, "{finding:?}");
        // Also where no sample is good in everything.
        let halves = [[0.28, 0.28, 400.0, 300_000.0, 900_000.0], [0.28, 800.0, 400_000.0, 1500.0, 3000.0]];
        assert!(of(&halves).estimate.favours_kvm());
    }

    #[test]
    fn a_slow_verdict_takes_several_samples_that_agree() {
        assert!(!of(&INTERPRETED[..1]).certain);
        assert!(!of(&INTERPRETED[..MIN_SAMPLES - 1]).certain);
        let mut uneven = INTERPRETED;
        uneven[2][1] *= 2.0 * MAX_SPREAD;
        assert!(!of(&uneven).certain);
        assert_eq!(judge(&Measurement { samples: Vec::new() }), None);
    }
}
