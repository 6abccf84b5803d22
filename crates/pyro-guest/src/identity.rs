//! What makes this machine different from every other one started from the same image.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use pyro_wire::Bootstrap;
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::fault::{During, Fault};

/// Sets the wall clock and refreshes the random pool. Comes first: everything later may depend on both.
pub(crate) fn apply_clock_and_seed(bootstrap: &Bootstrap) -> Result<(), Fault> {
    const NANOS: u64 = 1_000_000_000;
    let time = Timespec {
        tv_sec: i64::try_from(bootstrap.unix_time_ns / NANOS).unwrap_or(i64::MAX),
        // A remainder below 10^9 fits.
        tv_nsec: (bootstrap.unix_time_ns % NANOS) as i64,
    };
    clock_settime(ClockId::Realtime, time).during("setting the clock")?;
    let seed = decode_hex(&bootstrap.seed).filter(|seed| seed.len() >= 32).ok_or_else(|| Fault {
        step: "reading the random seed".into(),
        cause: "it is not at least 32 bytes of hex".into(),
        errno: 0,
    })?;
    reseed(&seed)
}

/// The files that say who this machine is, opened before it knows. Copying a file up from the base image takes
/// some ten thousand blocks of kernel code, none of which a machine that wakes up from a template has translated;
/// overwriting an open file takes few.
pub(crate) struct NameFiles {
    hostname: File,
    hosts: File,
    machine_id: File,
    /// Absent where the image has none.
    resolv_conf: Option<File>,
}

impl NameFiles {
    /// Makes them, with content of the expected length that says nothing.
    pub(crate) fn open() -> Result<Self, Fault> {
        let open = |path: &str, length: usize| {
            let open = || {
                let mut file = File::create(path)?;
                file.write_all(&vec![b'\n'; length])?;
                Ok::<_, std::io::Error>(file)
            };
            open().during(format!("making {path}"))
        };
        let name = "pyro-0123456789ab";
        Ok(Self {
            hostname: open("/etc/hostname", hostname_file(name).len())?,
            hosts: open("/etc/hosts", hosts_file(name).len())?,
            machine_id: open("/etc/machine-id", 33)?,
            // Its content stays for as long as nobody gives this machine a network.
            resolv_conf: File::options().write(true).open("/etc/resolv.conf").ok(),
        })
    }

    /// Gives this machine its names.
    pub(crate) fn fill(&self, bootstrap: &Bootstrap) -> Result<(), Fault> {
        let name = &bootstrap.hostname;
        rustix::system::sethostname(name.as_bytes()).during("setting the host name")?;
        overwrite(&self.hostname, &hostname_file(name)).during("writing /etc/hostname")?;
        overwrite(&self.hosts, &hosts_file(name)).during("writing /etc/hosts")?;
        overwrite(&self.machine_id, &format!("{}\n", bootstrap.machine_id))
            .during("writing /etc/machine-id")?;
        let Some(network) = &bootstrap.network else { return Ok(()) };
        let resolvers: String =
            network.dns_servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        let written = match &self.resolv_conf {
            Some(file) => overwrite(file, &resolvers),
            None => std::fs::write("/etc/resolv.conf", resolvers),
        };
        written.during("writing /etc/resolv.conf")
    }
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
fn reseed(seed: &[u8]) -> Result<(), Fault> {
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

    /// `struct rand_pool_info` with room for our largest seed.
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
    use super::decode_hex;

    #[test]
    fn hex_is_decoded_strictly() {
        assert_eq!(decode_hex("00ffA5"), Some(vec![0, 255, 165]));
        assert_eq!(decode_hex("0"), None);
        assert_eq!(decode_hex("zz"), None);
        assert_eq!(decode_hex("+1"), None);
    }
}
