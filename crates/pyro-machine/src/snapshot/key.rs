//! The key of a snapshot: a digest over everything that must be equal in the machine that was saved and in one
//! that starts from it.

use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::error::SnapshotError;
use super::layout;
use crate::files;
use crate::hardware::Hardware;
use crate::image::{GuestImage, GuestKernel};
use crate::platform::{Fingerprint, Platform};

/// Raised when the meaning of a snapshot's files changes.
const FORMAT: u32 = 2;
/// Hexadecimal digits of a key.
const DIGITS: usize = 32;

/// The kind of machine that a snapshot is made of, without anything that differs between machines of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The machine.
    pub hardware: Hardware,
    /// What runs on it.
    pub guest: GuestImage,
}

/// Returns the key of the snapshot of `subject`. It is equal for machines that can replace each other, even if there can
/// be no snapshot. `cache` is for what the platform remembers.
///
/// # Errors
/// The platform, the kernel or the host cannot be identified.
pub async fn key<P: Platform>(
    cache: &Path,
    subject: &Subject,
    platform: &P,
) -> Result<String, SnapshotError> {
    let fingerprint = platform.fingerprint(&subject.hardware, cache).await?;
    of(subject, &fingerprint)
}

/// The key on a platform with this fingerprint.
pub(super) fn of(subject: &Subject, fingerprint: &Fingerprint) -> Result<String, SnapshotError> {
    let boot_id = layout::host_boot_id()?;
    let kernel = kernel_identity(&subject.guest.kernel)?;
    Ok(digest(&subject.guest, fingerprint, &boot_id, pyro_guest_image::SHA256, kernel))
}

fn digest(
    guest: &GuestImage,
    fingerprint: &Fingerprint,
    boot_id: &str,
    agent: &str,
    kernel: Option<Value>,
) -> String {
    let layer = guest.layer_template.file_name().unwrap_or_default();
    let parts = json!([
        FORMAT,
        fingerprint.arrangement,
        fingerprint.version,
        boot_id,
        guest.digest,
        kernel,
        guest.base_filesystem,
        layer.to_string_lossy(),
        agent,
    ]);
    let mut key = hex::encode(Sha256::digest(parts.to_string()));
    key.truncate(DIGITS);
    key
}

/// The identity of a kernel file that no digest covers. A snapshot does not outlive the host's boot, so the file's
/// identity suffices; reading all of it would cost more than restoring a machine's state.
pub(super) fn kernel_identity(kernel: &GuestKernel) -> Result<Option<Value>, SnapshotError> {
    match kernel {
        GuestKernel::WithModules { .. } => Ok(None),
        GuestKernel::SelfContained { image } => {
            files::identity_of(image).map(Some).map_err(SnapshotError::io("examine", image.path()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::accel::Accelerator;
    use crate::disk::LayerLifetime;
    use crate::fake_program::fake_program;
    use crate::hardware::MachineConfig;
    use crate::network::NetworkInterface;
    use crate::qemu::Qemu;

    fn subject() -> Subject {
        let config = MachineConfig {
            vmm_program: "/usr/bin/qemu".into(),
            accelerator: Accelerator::Tcg,
            vcpu_count: 1,
            mem_mib: 1024,
        };
        let kernel =
            GuestKernel::WithModules { image: "/env/vmlinuz".into(), modules: "/env/modules.cpio".into() };
        Subject {
            hardware: Hardware { config, layer_lifetime: LayerLifetime::OneStart, interface: None },
            guest: GuestImage {
                digest: "kernel, modules and image".to_owned(),
                kernel,
                base_image: "/env/rootfs".into(),
                base_filesystem: "erofs".to_owned(),
                layer_template: "/layers/scratch-8192.img".into(),
            },
        }
    }

    /// A digest of a changed subject on this version of QEMU.
    async fn digest_of(
        (version, boot_id, agent): (&str, &str, &str),
        change: impl FnOnce(&mut Subject),
    ) -> String {
        let dir = tempfile::tempdir().unwrap();
        let mut subject = subject();
        let script = format!("echo QEMU emulator version {version}");
        subject.hardware.config.vmm_program = fake_program(dir.path(), &script);
        change(&mut subject);
        let fingerprint = Qemu::new().fingerprint(&subject.hardware, dir.path()).await.unwrap();
        digest(&subject.guest, &fingerprint, boot_id, agent, None)
    }

    #[tokio::test]
    async fn what_makes_state_unfit_changes_the_key() {
        const USUAL: (&str, &str, &str) = ("10.0.2", "boot", "agent");
        let mut keys = vec![
            digest_of(USUAL, |_| {}).await,
            digest_of(("10.0.3", "boot", "agent"), |_| {}).await,
            digest_of(("10.0.2", "another boot", "agent"), |_| {}).await,
            digest_of(("10.0.2", "boot", "another agent"), |_| {}).await,
            digest_of(USUAL, |of| of.guest.digest = "another kernel".to_owned()).await,
            digest_of(USUAL, |of| of.guest.base_filesystem = "ext4".to_owned()).await,
            digest_of(USUAL, |of| of.guest.layer_template = "/layers/scratch-512.img".into()).await,
            digest_of(USUAL, |of| of.hardware.config.vcpu_count = 2).await,
            digest_of(USUAL, |of| of.hardware.config.mem_mib = 2048).await,
            digest_of(USUAL, |of| of.hardware.config.accelerator = Accelerator::Kvm).await,
            digest_of(USUAL, |of| of.hardware.interface = Some(NetworkInterface::default())).await,
            digest_of(USUAL, |of| of.hardware.layer_lifetime = LayerLifetime::ManyStarts).await,
        ];
        let count = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), count);
    }

    #[tokio::test]
    async fn where_the_files_are_does_not_change_the_key() {
        let usual = ("10.0.2", "boot", "agent");
        let moved = digest_of(usual, |of| {
            of.guest.base_image = "/elsewhere/rootfs".into();
            of.guest.layer_template = "/elsewhere/scratch-8192.img".into();
        });
        assert_eq!(moved.await, digest_of(usual, |_| {}).await);
    }

    /// Saved state of an earlier release is found again under the key that it was saved under.
    #[test]
    fn the_digest_is_that_of_earlier_releases() {
        let fingerprint = Fingerprint {
            arrangement: vec!["-m".to_owned(), "1024M".to_owned()],
            version: "QEMU emulator version 10.0.2".to_owned(),
            saves_machines: true,
        };
        let key = digest(&subject().guest, &fingerprint, "boot", "agent", None);
        let text = concat!(
            r#"[2,["-m","1024M"],"QEMU emulator version 10.0.2","boot","kernel, modules and image","#,
            r#"null,"erofs","scratch-8192.img","agent"]"#
        );
        assert_eq!(key, hex::encode(Sha256::digest(text))[..32]);
    }

    struct Fixture(tempfile::TempDir);

    impl Fixture {
        fn new() -> Self {
            let fixture = Self(tempfile::tempdir().unwrap());
            fs::write(fixture.path("kernel"), b"kernel one").unwrap();
            fixture
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// The key with this kernel. The VMM is only asked for its version.
        async fn key(&self, kernel: GuestKernel) -> Result<String, SnapshotError> {
            let mut subject = subject();
            subject.hardware.config.vmm_program =
                fake_program(self.0.path(), "echo QEMU emulator version 10.0.2");
            subject.guest.kernel = kernel;
            key(&self.path("templates"), &subject, &Qemu::new()).await
        }

        async fn of_own_kernel(&self) -> String {
            self.key(GuestKernel::SelfContained { image: self.path("kernel").into() }).await.unwrap()
        }

        async fn with_modules(&self) -> String {
            let (image, modules) = (self.path("kernel"), self.path("modules"));
            self.key(GuestKernel::WithModules { image: image.into(), modules: modules.into() }).await.unwrap()
        }
    }

    #[tokio::test]
    async fn a_replaced_kernel_has_another_key() {
        let fixture = Fixture::new();
        let first = fixture.of_own_kernel().await;
        assert_eq!(fixture.of_own_kernel().await, first);

        // As the build of one installs it; equal in size and time.
        let kernel = fixture.path("kernel");
        let time = fs::metadata(&kernel).unwrap().modified().unwrap();
        let new = fixture.path("new");
        fs::write(&new, b"kernel two").unwrap();
        fs::File::options().write(true).open(&new).unwrap().set_modified(time).unwrap();
        fs::rename(&new, &kernel).unwrap();
        let second = fixture.of_own_kernel().await;
        assert_ne!(second, first);

        // Overwritten in place: only the inode's time shows it, whose clock ticks a few hundred times a second.
        std::thread::sleep(Duration::from_millis(20));
        fs::write(&kernel, b"kernel 333").unwrap();
        fs::File::options().write(true).open(&kernel).unwrap().set_modified(time).unwrap();
        assert_ne!(fixture.of_own_kernel().await, second);
    }

    #[tokio::test]
    async fn a_kernel_with_modules_is_known_by_the_digest() {
        let fixture = Fixture::new();
        let key = fixture.with_modules().await;
        assert_ne!(key, fixture.of_own_kernel().await);
        fs::remove_file(fixture.path("kernel")).unwrap();
        assert_eq!(fixture.with_modules().await, key);
    }

    #[tokio::test]
    async fn without_its_kernel_there_is_no_key() {
        let fixture = Fixture::new();
        let error =
            fixture.key(GuestKernel::SelfContained { image: fixture.path("none").into() }).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot examine "), "{error}");
        assert!(error.to_string().ends_with("/none"), "{error}");
    }
}
