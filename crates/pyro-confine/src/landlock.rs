//! Landlock rules, one for each file or directory that a program sees.

use std::error::Error;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
};

use rustix::io::Errno;

use crate::child::TRANSIENT;
use crate::policy::Access;

/// The newest interface whose access rights are known here. The kernel's own may be older: then it enforces less.
const NEWEST: ABI = ABI::V7;

/// Returns the version of the kernel's Landlock; `None` if it has none or it is switched off.
pub(crate) fn abi() -> Option<u32> {
    const VERSION: libc::c_uint = 1;
    #[expect(unsafe_code, reason = "there is no safe wrapper of this system call")]
    // SAFETY: with these arguments the system call reads and writes no memory of ours.
    let abi = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, VERSION)
    };
    u32::try_from(abi).ok().filter(|abi| *abi > 0)
}

/// What a rule set leaves open besides files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// Nothing.
    Closed,
    /// TCP, as far as other layers allow it.
    Open,
}

/// Creates the rule set that allows these files. `None`: the kernel has no Landlock.
pub(crate) fn rules<'a>(
    files: impl IntoIterator<Item = (BorrowedFd<'a>, bool, Access)>,
    network: Network,
) -> Result<Option<OwnedFd>, RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?;
    if network == Network::Closed {
        rules = rules.handle_access(AccessNet::from_all(NEWEST))?;
    }
    let mut created = rules.create()?.no_new_privs(false);
    for (file, is_dir, access) in files {
        created = created.add_rule(PathBeneath::new(file.as_fd(), rights(access, is_dir)))?;
    }
    Ok(created.into())
}

/// Returns the reason of an error that says nothing about the kernel's Landlock, such as a lack of memory.
pub(crate) fn transient(error: &(dyn Error + 'static)) -> Option<Errno> {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    let errnos = causes.filter_map(|cause| Errno::from_io_error(cause.downcast_ref()?));
    errnos.into_iter().find(|errno| TRANSIENT.contains(errno))
}

fn rights(access: Access, is_dir: bool) -> BitFlags<AccessFs> {
    let mut rights: BitFlags<AccessFs> = AccessFs::ReadFile.into();
    match access {
        Access::Read | Access::Library | Access::Tree => {}
        Access::Execute => rights |= AccessFs::Execute,
        Access::Write => rights |= AccessFs::WriteFile | AccessFs::Truncate,
        Access::WritableTree => {
            rights |= AccessFs::WriteFile
                | AccessFs::Truncate
                | AccessFs::MakeReg
                | AccessFs::MakeDir
                | AccessFs::MakeSym
                | AccessFs::RemoveFile
                | AccessFs::RemoveDir
                | AccessFs::Refer;
        }
        Access::Sockets => rights |= AccessFs::MakeSock,
        Access::Device => rights |= AccessFs::WriteFile | AccessFs::IoctlDev,
    }
    if is_dir {
        rights |= AccessFs::ReadDir;
    }
    rights
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_rule_set_exists_where_the_kernel_has_landlock() {
        let file = tempfile::tempfile().unwrap();
        let dir = File::open("/usr/lib").unwrap();
        let files = [(file.as_fd(), false, Access::Write), (dir.as_fd(), true, Access::Execute)];
        for network in [Network::Closed, Network::Open] {
            assert_eq!(rules(files, network).unwrap().is_some(), abi().is_some());
        }
    }

    /// Shaped like the errors of the crate, which no other crate can create.
    #[derive(Debug, thiserror::Error)]
    #[error("failed to create a ruleset")]
    struct Call {
        source: std::io::Error,
    }

    #[test]
    fn a_lack_of_descriptors_is_not_a_lack_of_landlock() {
        for (errno, expected) in [(Errno::MFILE, Some(Errno::MFILE)), (Errno::OPNOTSUPP, None)] {
            let error = Call { source: errno.into() };
            assert_eq!(transient(&error), expected);
        }
    }
}
