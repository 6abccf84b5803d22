//! What the host's processor offers to guests under KVM.
//!
//! A guest that was saved goes on only on such a processor. It can change while the host is up: microcode is updated, KVM
//! is loaded again with other parameters, or the host is itself a VM that moves.

use std::fs::File;
use std::io::{BufRead, BufReader};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;
use sha2::{Digest, Sha256};

/// What does not vary in `/proc/cpuinfo` from one reading to the next, or from one processor to another.
const FIELDS: [&str; 9] =
    ["vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags", "vmx flags", "bugs"];
/// The leaves of CPUID that say what instructions, registers, and features there are. Others describe caches and cores,
/// which differ between the processors of one host.
const LEAVES: [u32; 15] = [
    0,
    1,
    6,
    7,
    0xd,
    0x14,
    0x15,
    0x19,
    0x1e,
    0x24,
    0x4000_0001,
    0x8000_0001,
    0x8000_0007,
    0x8000_0008,
    0x8000_0021,
];
/// Bits of the second register of leaf 1 that are not the number of the processor that was asked.
const LEAF_1_EBX: u32 = 0x0000_ff00;

/// Identifies what a guest with the host's own processor depends on. What cannot be read is left out: then no guest can be
/// started either.
pub(crate) fn processor() -> String {
    let kvm = Kvm::new().and_then(|kvm| kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES));
    let cpuid = kvm.as_ref().map(|cpuid| cpuid.as_slice()).unwrap_or_default();
    let description =
        File::open("/proc/cpuinfo").map(|file| first_processor(BufReader::new(file))).unwrap_or_default();
    identify(&description, cpuid)
}

/// The description of the first processor.
fn first_processor(cpuinfo: impl BufRead) -> String {
    let lines = cpuinfo.lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    lines.map(|line| line + "\n").collect()
}

fn identify(description: &str, cpuid: &[kvm_cpuid_entry2]) -> String {
    let mut digest = Sha256::new();
    for line in description.lines() {
        let name = line.split(':').next().unwrap_or_default().trim();
        if FIELDS.contains(&name) {
            digest.update(line);
            digest.update("\n");
        }
    }
    for entry in cpuid.iter().filter(|entry| LEAVES.contains(&entry.function)) {
        let ebx = if entry.function == 1 { entry.ebx & LEAF_1_EBX } else { entry.ebx };
        for register in [entry.function, entry.index, entry.eax, ebx, entry.ecx, entry.edx] {
            digest.update(register.to_le_bytes());
        }
    }
    format!("processor {}", hex::encode(&digest.finalize()[..16]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\nmicrocode\t: 0x1\ncpu MHz\t\t: 2600.000\n\
                           flags\t\t: fpu vme\n";

    fn cpuid() -> Vec<kvm_cpuid_entry2> {
        let leaf = |function| kvm_cpuid_entry2 { function, ebx: 1 << 8, ..Default::default() };
        vec![leaf(1), leaf(7), leaf(0xb)]
    }

    fn changed(change: impl FnOnce(&mut String, &mut Vec<kvm_cpuid_entry2>)) -> String {
        let (mut description, mut cpuid) = (CPUINFO.to_owned(), cpuid());
        change(&mut description, &mut cpuid);
        identify(&description, &cpuid)
    }

    #[test]
    fn what_a_guest_could_use_counts() {
        let mut all = vec![
            changed(|_, _| {}),
            changed(|text, _| *text = text.replace("0x1", "0x2")),
            changed(|text, _| *text = text.replace("fpu vme", "fpu")),
            changed(|text, _| *text = text.replace("GenuineIntel", "AuthenticAMD")),
            changed(|_, cpuid| cpuid[1].ebx = 0),
            changed(|_, cpuid| cpuid[0].edx = 1),
            changed(|_, cpuid| cpuid.truncate(1)),
        ];
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn what_differs_between_processors_and_moments_does_not_count() {
        let usual = changed(|_, _| {});
        assert_eq!(changed(|text, _| *text = text.replace("2600.000", "800.000")), usual);
        assert_eq!(changed(|text, _| *text = text.replace("processor\t: 0", "processor\t: 1")), usual);
        assert_eq!(changed(|_, cpuid| cpuid[0].ebx |= 7 << 24), usual);
        assert_eq!(changed(|_, cpuid| cpuid[2].edx = 5), usual);
    }

    #[test]
    fn only_the_first_processor_is_read() {
        let text = format!("{CPUINFO}\nprocessor\t: 1\nflags\t: other\n");
        assert_eq!(first_processor(text.as_bytes()), CPUINFO);
        assert_eq!(processor(), processor());
    }
}
