//! A guest of a few instructions, without a kernel, that does what a kernel does most.
#![expect(unsafe_code, reason = "mapping memory into the guest, and a loop in assembly")]

use std::fs::OpenOptions;
use std::io;
use std::ptr;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::costs::Costs;

/// Few enough that KVM that interprets takes a tenth of a second, enough that entering the guest hardly matters.
pub(super) const LOOPS: u32 = 50_000;
const PAGINGS: u32 = 200;
const FAULTS: u32 = 128;
const EXITS: u32 = 100;

const PAGE: usize = 4096;
/// The guest's memory, from address 0 on.
const MEMORY: usize = 4 << 20;

// Guest-physical addresses, which are also those that the guest's code uses.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT: u64 = 0x4000;
const CODE: u64 = 0x5000;
/// The page at `WINDOW` is alternately this one and the next.
const FRAME: u64 = 0x8000;
/// Pages below this address are mapped one to one. There is no memory of that address; it is a place in the page table.
const WINDOW: u64 = 0x1_0000;
/// Pages that the guest has not accessed before.
const FRESH: u64 = 2 << 20;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;

/// Work for the guest: 64-bit code that repeats itself `ecx` times.
struct Routine {
    code: &'static [u8],
    rdi: u64,
    rsi: u64,
}

const LOOP: Routine = Routine {
    code: &[
        0xff, 0xc9, // again: dec ecx
        0x75, 0xfc, // jnz again
        0xf4, // hlt
    ],
    rdi: 0,
    rsi: 0,
};

const PAGING: Routine = Routine {
    code: &[
        0x48, 0x8b, 0x07, // again: mov rax, [rdi]
        0x48, 0x35, 0x00, 0x10, 0x00, 0x00, // xor rax, 0x1000
        0x48, 0x89, 0x07, // mov [rdi], rax
        0x0f, 0x01, 0x3e, // invlpg [rsi]
        0x48, 0x8b, 0x06, // mov rax, [rsi]
        0x0f, 0x20, 0xd8, // mov rax, cr3
        0x0f, 0x22, 0xd8, // mov cr3, rax
        0xff, 0xc9, // dec ecx
        0x75, 0xe4, // jnz again
        0xf4, // hlt
    ],
    rdi: PT + WINDOW / PAGE as u64 * 8,
    rsi: WINDOW,
};

const FAULTING: Routine = Routine {
    code: &[
        0x88, 0x0f, // again: mov [rdi], cl
        0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add rdi, 4096
        0xff, 0xc9, // dec ecx
        0x75, 0xf3, // jnz again
        0xf4, // hlt
    ],
    rdi: FRESH,
    rsi: 0,
};

const EXITING: Routine = Routine {
    code: &[
        0xe6, 0x10, // again: out 0x10, al
        0xff, 0xc9, // dec ecx
        0x75, 0xfa, // jnz again
        0xf4, // hlt
    ],
    rdi: 0,
    rsi: 0,
};

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

fn failed<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> MeasureError {
    move |error| MeasureError::Step { step, cause: error.into() }
}

pub(super) fn openable() -> io::Result<()> {
    OpenOptions::new().read(true).write(true).open("/dev/kvm").map(drop)
}

/// The guest. Fields are dropped in this order: the VM must go before its memory.
pub(super) struct Guest {
    vcpu: VcpuFd,
    _vm: VmFd,
    memory: Memory,
}

impl Guest {
    pub(super) fn new() -> Result<Self, MeasureError> {
        let mut memory = Memory::new().map_err(failed("allocating memory"))?;
        memory.write(PML4, &(PDPT | PRESENT_WRITABLE).to_le_bytes());
        memory.write(PDPT, &(PD | PRESENT_WRITABLE).to_le_bytes());
        memory.write(PD, &(PT | PRESENT_WRITABLE).to_le_bytes());
        memory.write(PD + 8, &(FRESH | PRESENT_WRITABLE | LARGE).to_le_bytes());
        for page in 0..WINDOW / PAGE as u64 {
            memory.write(PT + page * 8, &((page * PAGE as u64) | PRESENT_WRITABLE).to_le_bytes());
        }
        memory.write(PAGING.rdi, &(FRAME | PRESENT_WRITABLE).to_le_bytes());

        let kvm = Kvm::new().map_err(failed("opening /dev/kvm"))?;
        let vm = kvm.create_vm().map_err(failed("creating a VM"))?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: memory.0 as u64,
        };
        // SAFETY: the memory is mapped and MEMORY bytes long. It outlives the VM: locals are dropped in reverse order
        // on an early return, and the fields of `Guest` in the order of their declaration.
        unsafe { vm.set_user_memory_region(region) }.map_err(failed("giving it memory"))?;
        let vcpu = vm.create_vcpu(0).map_err(failed("creating a CPU"))?;
        // Without it, a processor has no long mode on newer kernels.
        let cpuid =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("asking for the features"))?;
        vcpu.set_cpuid2(&cpuid).map_err(failed("setting its features"))?;
        let mut registers = vcpu.get_sregs().map_err(failed("reading its registers"))?;
        enter_long_mode(&mut registers);
        vcpu.set_sregs(&registers).map_err(failed("setting its mode"))?;
        Ok(Self { vcpu, _vm: vm, memory })
    }

    /// Measures everything once.
    pub(super) fn sample(&mut self) -> Result<Costs, MeasureError> {
        let each = |time: Duration, count: u32| time.as_secs_f64() * 1e9 / f64::from(count);
        let host = loop_on_host();
        let loops = self.run(&LOOP, LOOPS)?;
        let paging = self.run(&PAGING, PAGINGS)?;
        self.memory.forget_fresh_pages().map_err(failed("releasing memory"))?;
        let faults = self.run(&FAULTING, FAULTS)?;
        let exits = self.run(&EXITING, EXITS)?;
        Ok(Costs {
            host_loop_ns: each(host, LOOPS),
            loop_ns: each(loops, LOOPS),
            paging_ns: each(paging, PAGINGS),
            fault_ns: each(faults, FAULTS),
            exit_ns: each(exits, EXITS),
        })
    }

    fn run(&mut self, routine: &Routine, count: u32) -> Result<Duration, MeasureError> {
        self.memory.write(CODE, routine.code);
        let registers = kvm_regs {
            rip: CODE,
            rcx: count.into(),
            rdi: routine.rdi,
            rsi: routine.rsi,
            rflags: 2,
            ..kvm_regs::default()
        };
        self.vcpu.set_regs(&registers).map_err(failed("setting its registers"))?;
        let start = Instant::now();
        loop {
            match self.vcpu.run().map_err(failed("running it"))? {
                VcpuExit::IoOut(..) => {}
                VcpuExit::Hlt => return Ok(start.elapsed()),
                other => return Err(MeasureError::UnexpectedExit(format!("{other:?}"))),
            }
        }
    }
}

/// Kernels run in this mode. Real mode would be emulated by older processors that are fast otherwise.
fn enter_long_mode(registers: &mut kvm_sregs) {
    const CR0_PE_ET_NE_PG: u64 = 0x8000_0031;
    const CR4_PAE: u64 = 0x20;
    const EFER_LME_LMA: u64 = 0x500;
    let code = kvm_segment {
        limit: u32::MAX,
        selector: 8,
        type_: 11,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let data = kvm_segment { selector: 16, type_: 3, db: 1, l: 0, ..code };
    registers.cr0 = CR0_PE_ET_NE_PG;
    registers.cr3 = PML4;
    registers.cr4 = CR4_PAE;
    registers.efer = EFER_LME_LMA;
    registers.cs = code;
    for segment in
        [&mut registers.ds, &mut registers.es, &mut registers.fs, &mut registers.gs, &mut registers.ss]
    {
        *segment = data;
    }
}

/// The loop of the guest, in this process.
fn loop_on_host() -> Duration {
    let start = Instant::now();
    // SAFETY: it changes nothing but the register that it is given, and the flags.
    unsafe {
        core::arch::asm!("2: dec {0:e}", "jnz 2b", inout(reg) LOOPS => _, options(nomem, nostack));
    }
    start.elapsed()
}

/// Anonymous memory, in small pages only: each is then a fault of its own.
struct Memory(*mut u8);

impl Memory {
    fn new() -> io::Result<Self> {
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice affects no existing memory.
        let start = unsafe {
            mmap_anonymous(ptr::null_mut(), MEMORY, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }?;
        let memory = Self(start.cast());
        // Fails where the kernel has no huge pages, where there is nothing to prevent.
        // SAFETY: the mapping is this one, and keeps its content.
        let _ = unsafe { madvise(start, MEMORY, Advice::LinuxNoHugepage) };
        Ok(memory)
    }

    fn write(&mut self, address: u64, bytes: &[u8]) {
        let address = usize::try_from(address).unwrap_or(usize::MAX);
        assert!(address.checked_add(bytes.len()).is_some_and(|end| end <= MEMORY));
        // SAFETY: the memory is writable, as long as asserted, and not aliased by any Rust reference.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(address), bytes.len()) }
    }

    fn forget_fresh_pages(&mut self) -> io::Result<()> {
        const START: usize = 2 << 20;
        // SAFETY: the range lies within the mapping, and nothing refers to its content.
        unsafe { madvise(self.0.add(START).cast(), MEMORY - START, Advice::LinuxDontNeed) }?;
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and unmapped only here.
        let _ = unsafe { munmap(self.0.cast(), MEMORY) };
    }
}
