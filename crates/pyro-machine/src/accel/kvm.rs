//! The probe: a counted loop in a real-mode guest without a kernel.
#![expect(unsafe_code, reason = "mapping memory into the guest")]

use std::fs::OpenOptions;
use std::io;
use std::ptr;
use std::time::Instant;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use serde::{Deserialize, Serialize};

/// Few enough that emulation takes a tenth of a second, enough that entering the guest does not matter.
const ITERATIONS: u32 = 100_000;
const PAGE: usize = 4096;
/// Guest-physical address of the code.
const ENTRY: u64 = 0x1000;

/// The probe's result.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Iterations of a loop of two instructions.
    pub iterations: u32,
    /// Time they took, in milliseconds.
    pub elapsed_ms: f64,
}

/// Why KVM could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// A step failed.
    #[error("{step}: {cause}")]
    Step {
        /// The step.
        step: &'static str,
        /// Why it failed.
        cause: io::Error,
    },
    /// The guest stopped for a reason other than the end of its code.
    #[error("unexpected exit {0}")]
    UnexpectedExit(String),
}

pub(super) fn openable() -> io::Result<()> {
    OpenOptions::new().read(true).write(true).open("/dev/kvm").map(drop)
}

/// Runs the loop under KVM. May hang or crash on a broken KVM: run it in a separate process.
///
/// # Errors
/// [`MeasureError`].
pub fn measure() -> Result<Measurement, MeasureError> {
    fn failed<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> MeasureError {
        move |error| MeasureError::Step { step, cause: error.into() }
    }
    let page = Page::new().map_err(failed("allocating memory"))?;
    let kvm = Kvm::new().map_err(failed("opening /dev/kvm"))?;
    let vm = kvm.create_vm().map_err(failed("creating a VM"))?;
    page.fill(&code());
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: ENTRY,
        memory_size: PAGE as u64,
        userspace_addr: page.0 as u64,
    };
    // SAFETY: the page is mapped and PAGE bytes long. It outlives the VM: locals are dropped in reverse order
    // on an early return, and in the order written at the end.
    unsafe { vm.set_user_memory_region(region) }.map_err(failed("giving it memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed("creating a CPU"))?;

    let mut segments = vcpu.get_sregs().map_err(failed("reading its registers"))?;
    segments.cs.base = 0;
    segments.cs.selector = 0;
    vcpu.set_sregs(&segments).map_err(failed("setting its registers"))?;
    let mut registers = vcpu.get_regs().map_err(failed("reading its registers"))?;
    registers.rip = ENTRY;
    registers.rflags = 2;
    vcpu.set_regs(&registers).map_err(failed("setting its registers"))?;

    let start = Instant::now();
    let exit = match vcpu.run().map_err(failed("running it"))? {
        VcpuExit::Hlt => Ok(()),
        other => Err(MeasureError::UnexpectedExit(format!("{other:?}"))),
    };
    let elapsed_ms = start.elapsed().as_secs_f64() * 1000.0;
    // The VM must go before its memory.
    drop(vcpu);
    drop(vm);
    drop(page);
    exit.map(|()| Measurement { iterations: ITERATIONS, elapsed_ms })
}

/// `mov ecx, ITERATIONS; again: dec ecx; jnz again; hlt` in 16-bit mode.
fn code() -> Vec<u8> {
    let mut code = vec![0x66, 0xb9];
    code.extend(ITERATIONS.to_le_bytes());
    code.extend([0x66, 0x49, 0x75, 0xfc, 0xf4]);
    code
}

/// One page of anonymous memory.
struct Page(*mut u8);

impl Page {
    fn new() -> io::Result<Self> {
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice affects no existing memory.
        let page = unsafe {
            mmap_anonymous(ptr::null_mut(), PAGE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }?;
        Ok(Self(page.cast()))
    }

    fn fill(&self, bytes: &[u8]) {
        assert!(bytes.len() <= PAGE);
        // SAFETY: the page is writable, as long as asserted, and not aliased by any Rust reference.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.0, bytes.len()) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and unmapped only here.
        let _ = unsafe { munmap(self.0.cast(), PAGE) };
    }
}
