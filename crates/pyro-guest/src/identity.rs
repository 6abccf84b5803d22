//! What makes this machine different from every other one started from the same image.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pyro_wire::{Bootstrap, Failure};
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::failure::{During, refused};

/// Shortest seed that is accepted, in bytes.
const MIN_SEED_BYTES: usize = 32;

/// Sets the wall clock and refreshes the random pool. Comes first: everything later may depend on both.
pub(crate) fn apply_clock_and_seed(bootstrap: &Bootstrap) -> Result<(), Failure> {
    clock_settime(ClockId::Realtime, time_of(bootstrap.unix_time_ns)).during("setting the clock")?;
    reseed(&seed_of(bootstrap)?)
}

fn time_of(unix_time_ns: u64) -> Timespec {
    const NANOS: u64 = 1_000_000_000;
    Timespec {
        tv_sec: i64::try_from(unix_time_ns / NANOS).unwrap_or(i64::MAX),
        // A remainder below 10^9 fits.
        tv_nsec: (unix_time_ns % NANOS) as i64,
    }
}

fn seed_of(bootstrap: &Bootstrap) -> Result<Vec<u8>, Failure> {
    decode_hex(&bootstrap.seed).filter(|seed| seed.len() >= MIN_SEED_BYTES).ok_or_else(|| {
        refused(
            "reading the random seed",
            format!("invalid seed: expected at least {MIN_SEED_BYTES} bytes in hexadecimal"),
        )
    })
}

/// The files with the names of this machine, opened before they are known. Copying a file up from the base image takes
/// some ten thousand blocks of kernel code, none of which a machine that wakes up from a template has translated;
/// overwriting an open file takes few.
pub(crate) struct NameFiles {
    hostname: File,
    hosts: File,
    machine_id: File,
    /// Absent where the image has none.
    resolv_conf: Option<File>,
    resolv_conf_path: PathBuf,
}

impl NameFiles {
    /// Makes them in `etc`, with blank content of the expected length.
    pub(crate) fn open(etc: &Path) -> Result<Self, Failure> {
        let open = |name: &str, length: usize| {
            let path = etc.join(name);
            let open = || {
                let mut file = File::create(&path)?;
                file.write_all(&vec![b'\n'; length])?;
                Ok::<_, std::io::Error>(file)
            };
            open().during(format!("creating {}", path.display()))
        };
        let name = "pyro-0123456789ab";
        let resolv_conf_path = etc.join("resolv.conf");
        Ok(Self {
            hostname: open("hostname", hostname_file(name).len())?,
            hosts: open("hosts", hosts_file(name).len())?,
            machine_id: open("machine-id", 33)?,
            // Its content stays for as long as this machine has no network.
            resolv_conf: File::options().write(true).open(&resolv_conf_path).ok(),
            resolv_conf_path,
        })
    }

    /// Writes this machine's names.
    pub(crate) fn fill(&self, bootstrap: &Bootstrap) -> Result<(), Failure> {
        let name = &bootstrap.hostname;
        overwrite(&self.hostname, &hostname_file(name)).during("writing /etc/hostname")?;
        overwrite(&self.hosts, &hosts_file(name)).during("writing /etc/hosts")?;
        overwrite(&self.machine_id, &format!("{}\n", bootstrap.machine_id))
            .during("writing /etc/machine-id")?;
        let Some(network) = &bootstrap.network else { return Ok(()) };
        let resolvers: String =
            network.dns_servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        let written = match &self.resolv_conf {
            Some(file) => overwrite(file, &resolvers),
            None => std::fs::write(&self.resolv_conf_path, resolvers),
        };
        written.during("writing /etc/resolv.conf")
    }
}

/// Gives the kernel this machine's name.
pub(crate) fn set_host_name(bootstrap: &Bootstrap) -> Result<(), Failure> {
    rustix::system::sethostname(bootstrap.hostname.as_bytes()).during("setting the host name")
}

fn hostname_file(name: &str) -> String {
    format!("{name}\n")
}

fn hosts_file(name: &str) -> String {
    format!("127.0.0.1 localhost {name}\n::1 localhost ip6-localhost ip6-loopback\n")
}

fn overwrite(file: &File, text: &str) -> std::io::Result<()> {
    file.write_all_at(text.as_bytes(), 0)?;
    let length = text.len() as u64;
    if file.metadata()?.len() != length { file.set_len(length) } else { Ok(()) }
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs
        .iter()
        .map(|&[high, low]| {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            u8::try_from(digit(high)? << 4 | digit(low)?).ok()
        })
        .collect()
}

/// Adds the seed to the kernel's pool, credited in full, and makes the generator use it at once. Without
/// the second step, machines restored from one snapshot would go on producing the same numbers.
fn reseed(seed: &[u8]) -> Result<(), Failure> {
    let random = File::options().write(true).open("/dev/random").during("opening /dev/random")?;
    entropy::credit(&random, seed).during("crediting the random seed")?;
    entropy::renew(&random).during("renewing the random generator")
}

/// The two ioctls of `random(4)` that the standard bindings lack.
mod entropy {
    #![expect(unsafe_code, reason = "ioctl")]

    use std::ffi::c_int;
    use std::os::fd::AsFd;

    use rustix::ioctl::{NoArg, Setter, ioctl, opcode};

    const MAX_SEED_BYTES: usize = 64;
    const ADD_ENTROPY: u32 = opcode::write::<[c_int; 2]>(b'R', 0x03);
    const RESEED: u32 = opcode::none(b'R', 0x07);

    /// `struct rand_pool_info` with a buffer for our largest seed.
    #[repr(C)]
    struct PoolInfo {
        entropy_bits: c_int,
        buffer_bytes: c_int,
        buffer: [u8; MAX_SEED_BYTES],
    }

    pub(super) fn credit(random: impl AsFd, seed: &[u8]) -> rustix::io::Result<()> {
        let used = seed.len().min(MAX_SEED_BYTES);
        let mut buffer = [0; MAX_SEED_BYTES];
        buffer[..used].copy_from_slice(&seed[..used]);
        // At most MAX_SEED_BYTES, so neither number can overflow.
        let info = PoolInfo { entropy_bits: used as c_int * 8, buffer_bytes: used as c_int, buffer };
        // SAFETY: RNDADDENTROPY reads a `struct rand_pool_info` whose buffer_bytes bytes are inside PoolInfo.
        unsafe { ioctl(random, Setter::<ADD_ENTROPY, PoolInfo>::new(info)) }
    }

    pub(super) fn renew(random: impl AsFd) -> rustix::io::Result<()> {
        // SAFETY: RNDRESEEDCRNG takes no argument.
        unsafe { ioctl(random, NoArg::<RESEED>::new()) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pyro_wire::{HostSettings, NetworkConfig};

    use super::*;

    fn bootstrap(hostname: &str) -> Bootstrap {
        Bootstrap {
            unix_time_ns: 0,
            seed: "ab".repeat(MIN_SEED_BYTES),
            hostname: hostname.to_owned(),
            machine_id: "0123456789abcdef".repeat(2),
            network: None,
            host: HostSettings::default(),
        }
    }

    fn network() -> NetworkConfig {
        NetworkConfig {
            address: [10, 0, 2, 15].into(),
            prefix_len: 24,
            gateway: [10, 0, 2, 2].into(),
            dns_servers: vec![[10, 0, 2, 3].into(), [1, 1, 1, 1].into()],
            mac_address: None,
            mtu: None,
            ipv6: None,
        }
    }

    #[test]
    fn hex_is_decoded_strictly() {
        assert_eq!(decode_hex("00ffA5"), Some(vec![0, 255, 165]));
        assert_eq!(decode_hex("0"), None);
        assert_eq!(decode_hex("zz"), None);
        assert_eq!(decode_hex("+1"), None);
    }

    #[test]
    fn a_seed_is_at_least_32_bytes_of_hex() {
        assert_eq!(seed_of(&bootstrap("a")).unwrap(), [0xab; MIN_SEED_BYTES]);
        for seed in [String::new(), "ab".repeat(MIN_SEED_BYTES - 1), "xy".repeat(MIN_SEED_BYTES)] {
            let failure = seed_of(&Bootstrap { seed, ..bootstrap("a") }).unwrap_err();
            assert_eq!(failure.step, "reading the random seed");
        }
    }

    #[test]
    fn every_time_of_the_host_is_a_time() {
        assert_eq!(time_of(1_500_000_000), Timespec { tv_sec: 1, tv_nsec: 500_000_000 });
        assert_eq!(time_of(u64::MAX), Timespec { tv_sec: 18_446_744_073, tv_nsec: 709_551_615 });
    }

    #[test]
    fn the_files_say_who_the_machine_is_and_later_who_it_became() {
        let etc = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read_to_string(etc.path().join(name)).unwrap();
        fs::write(etc.path().join("hostname"), "a name from the image that is longer than ours\n").unwrap();
        let files = NameFiles::open(etc.path()).unwrap();
        assert_eq!(read("machine-id"), "\n".repeat(33), "nothing of the image's machine is left");
        for name in ["pyro-0123456789ab", "a-name-that-is-longer-than-expected", "short"] {
            files.fill(&bootstrap(name)).unwrap();
            assert_eq!(read("hostname"), format!("{name}\n"));
            assert_eq!(
                read("hosts"),
                format!("127.0.0.1 localhost {name}\n::1 localhost ip6-localhost ip6-loopback\n")
            );
            assert_eq!(read("machine-id"), "0123456789abcdef0123456789abcdef\n");
        }
        assert!(!etc.path().join("resolv.conf").exists(), "there is no network");
    }

    #[test]
    fn name_servers_are_written_whether_the_image_has_the_file_or_not() {
        for in_image in [Some("nameserver 9.9.9.9\n# with a long comment that must not stay\n"), None] {
            let etc = tempfile::tempdir().unwrap();
            let resolv_conf = etc.path().join("resolv.conf");
            if let Some(text) = in_image {
                fs::write(&resolv_conf, text).unwrap();
            }
            let files = NameFiles::open(etc.path()).unwrap();
            files.fill(&bootstrap("a")).unwrap();
            assert_eq!(fs::read_to_string(&resolv_conf).ok().as_deref(), in_image);
            files.fill(&Bootstrap { network: Some(network()), ..bootstrap("a") }).unwrap();
            assert_eq!(
                fs::read_to_string(&resolv_conf).unwrap(),
                "nameserver 10.0.2.3\nnameserver 1.1.1.1\n"
            );
        }
    }

    #[test]
    fn files_that_cannot_be_made_are_a_failure() {
        let etc = tempfile::tempdir().unwrap();
        let failure = NameFiles::open(&etc.path().join("absent")).err().unwrap();
        assert!(failure.step.ends_with("absent/hostname"), "{failure}");
    }
}
