//! From an empty initramfs to an open channel: pseudo filesystems, kernel modules, the port or the connection.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use pyro_wire::{Failure, MODULE_DIR, MODULE_ORDER_FILE, PORT_NAME, VSOCK_PORT_ARGUMENT};
use rustix::mount::{MountFlags, mount};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use crate::failure::{During, refused};
use crate::vsock::{self, Channel};

/// Where the kernel lists the ports of the channel's driver.
const PORTS: &str = "/sys/class/virtio-ports";
/// The driver of the channel, as the kernel lists it.
const PORT_DRIVER: &str = "/sys/bus/virtio/drivers/virtio_console";

/// The arguments of the kernel.
const ARGUMENTS: &str = "/proc/cmdline";

/// Mounts what the kernel offers, loads the modules the initrd carries and opens the channel to the host.
pub(crate) fn open_channel() -> Result<Channel, Failure> {
    mount_pseudo_filesystems()?;
    // Listening starts before the modules load, so that no announcement of the port can be missed.
    let events = device_events().during("listening for device events")?;
    load_modules()?;
    let arguments = fs::read_to_string(ARGUMENTS).during(format!("reading {ARGUMENTS}"))?;
    match vsock_port(&arguments)? {
        // The device is there: drivers take over the devices that exist while they are loaded.
        Some(port) => Channel::connect(move || vsock::connect_to_host(port))
            .map(|channel| channel.with_packet_port(port + 1))
            .during(format!("connecting to port {port} of the host over vsock")),
        None => open_port(&events).map(Channel::from),
    }
}

/// The host's vsock port in the arguments of the kernel, if it is what carries the channel.
fn vsock_port(arguments: &str) -> Result<Option<u32>, Failure> {
    let value = arguments
        .split_ascii_whitespace()
        .find_map(|argument| argument.strip_prefix(VSOCK_PORT_ARGUMENT)?.strip_prefix('='));
    let Some(value) = value else { return Ok(None) };
    // The next port is used, too.
    value.parse().ok().filter(|port| *port < u32::MAX).map(Some).ok_or_else(|| {
        refused(
            "reading the kernel's arguments",
            format!("invalid vsock port: expected a number, got {value:?}"),
        )
    })
}

/// Opens the virtio-serial port, once the kernel has it.
fn open_port(events: &OwnedFd) -> Result<File, Failure> {
    // All drivers are registered by now. Without this one, no port will ever appear.
    fs::metadata(PORT_DRIVER).during("looking for the kernel's virtio_console driver")?;
    let port = loop {
        if let Some(port) = find_port(Path::new(PORTS)).during("looking for the channel's port")? {
            break port;
        }
        let mut message = [0; 4096];
        recv(events, &mut message, RecvFlags::empty()).during("waiting for the channel's port")?;
    };
    OpenOptions::new().read(true).write(true).open(&port).during(format!("opening {}", port.display()))
}

/// Mounts a filesystem that has no device.
pub(crate) fn mount_virtual(kind: &str, target: &str, flags: MountFlags, data: &str) -> Result<(), Failure> {
    fs::create_dir_all(target).during(format!("creating {target}"))?;
    let data = std::ffi::CString::new(data).unwrap_or_default();
    mount(kind, target, kind, flags, data.as_c_str()).during(format!("mounting {kind} on {target}"))
}

fn mount_pseudo_filesystems() -> Result<(), Failure> {
    let hardened = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_virtual("proc", "/proc", hardened, "")?;
    mount_virtual("sysfs", "/sys", hardened, "")?;
    mount_virtual("devtmpfs", "/dev", MountFlags::NOSUID, "mode=0755")
}

fn device_events() -> rustix::io::Result<OwnedFd> {
    /// The multicast group on which the kernel itself announces devices.
    const KERNEL_GROUP: u32 = 1;
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(KOBJECT_UEVENT))?;
    bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
    Ok(socket)
}

/// Loads the modules of the initrd in the order of their list.
fn load_modules() -> Result<(), Failure> {
    let dir = Path::new(MODULE_DIR);
    for name in modules(dir).during("reading the module list")? {
        let module = File::open(dir.join(&name)).during(format!("opening module {name}"))?;
        match rustix::system::finit_module(&module, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error).during(format!("loading module {name}")),
        }
    }
    Ok(())
}

/// File names of the modules to load, in order. A kernel with everything built in has none.
fn modules(dir: &Path) -> io::Result<Vec<String>> {
    match fs::read_to_string(dir.join(MODULE_ORDER_FILE)) {
        Ok(order) => Ok(order.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The device of the port that carries the channel, once the kernel has it.
fn find_port(listed: &Path) -> io::Result<Option<PathBuf>> {
    let ports = match fs::read_dir(listed) {
        Ok(ports) => ports,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for port in ports {
        let port = port?;
        // The kernel announces the name later than the port.
        if fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim() == PORT_NAME) {
            return Ok(Some(Path::new("/dev").join(port.file_name())));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_loaded_in_the_order_of_the_list() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(modules(dir.path()).unwrap(), [""; 0]);
        fs::write(dir.path().join(MODULE_ORDER_FILE), "b.ko\na.ko\n").unwrap();
        assert_eq!(modules(dir.path()).unwrap(), ["b.ko", "a.ko"]);
    }

    #[test]
    fn a_module_list_that_cannot_be_read_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(MODULE_ORDER_FILE)).unwrap();
        assert!(modules(dir.path()).is_err());
    }

    #[test]
    fn the_kernels_arguments_say_whether_the_channel_is_over_vsock() {
        assert_eq!(vsock_port("console=ttyS0 quiet").unwrap(), None);
        assert_eq!(vsock_port("quiet pyro.vsock_port=1024 panic=-1\n").unwrap(), Some(1024));
        for invalid in ["pyro.vsock_port=", "pyro.vsock_port=-1", "pyro.vsock_port=4294967295"] {
            let failure = vsock_port(invalid).unwrap_err();
            assert!(failure.cause.starts_with("invalid vsock port"), "{failure}");
        }
    }

    #[test]
    fn the_port_is_found_by_its_name_once_it_has_one() {
        let dir = tempfile::tempdir().unwrap();
        let listed = dir.path().join("virtio-ports");
        assert_eq!(find_port(&listed).unwrap(), None);
        for port in ["vport1p1", "vport1p2"] {
            fs::create_dir_all(listed.join(port)).unwrap();
        }
        fs::write(listed.join("vport1p1/name"), "another\n").unwrap();
        assert_eq!(find_port(&listed).unwrap(), None);
        fs::write(listed.join("vport1p2/name"), format!("{PORT_NAME}\n")).unwrap();
        assert_eq!(find_port(&listed).unwrap(), Some("/dev/vport1p2".into()));
    }
}
