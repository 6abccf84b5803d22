//! From an empty initramfs to an open channel: pseudo filesystems, kernel modules, the port.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use pyro_wire::{MODULE_DIR, MODULE_ORDER_FILE, PORT_NAME};
use rustix::mount::{MountFlags, mount};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use crate::fault::{During, Fault};

/// The driver of the channel, as the kernel lists it.
const PORT_DRIVER: &str = "/sys/bus/virtio/drivers/virtio_console";

/// Mounts what the kernel offers, loads the modules the initrd carries and opens the channel to the host.
pub(crate) fn open_channel() -> Result<File, Fault> {
    mount_pseudo_filesystems()?;
    // Listening starts before the modules load, so that no announcement of the port can be missed.
    let events = device_events().during("listening for device events")?;
    load_modules()?;
    // Drivers are there once the kernel is up and modules are loaded. Without this one no port will ever come.
    fs::metadata(PORT_DRIVER).during("looking for the kernel's virtio_console driver")?;
    let port = loop {
        if let Some(port) = find_port().during("looking for the channel's port")? {
            break port;
        }
        let mut message = [0; 4096];
        recv(&events, &mut message, RecvFlags::empty()).during("waiting for the channel's port")?;
    };
    OpenOptions::new().read(true).write(true).open(&port).during(format!("opening {}", port.display()))
}

/// Mounts a filesystem that has no device.
pub(crate) fn mount_virtual(kind: &str, target: &str, flags: MountFlags, data: &str) -> Result<(), Fault> {
    fs::create_dir_all(target).during(format!("making {target}"))?;
    let data = std::ffi::CString::new(data).unwrap_or_default();
    mount(kind, target, kind, flags, data.as_c_str()).during(format!("mounting {kind} on {target}"))
}

fn mount_pseudo_filesystems() -> Result<(), Fault> {
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

fn load_modules() -> Result<(), Fault> {
    let dir = Path::new(MODULE_DIR);
    let order = match fs::read_to_string(dir.join(MODULE_ORDER_FILE)) {
        Ok(order) => order,
        // A kernel with everything built in needs no modules.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).during("reading the module list"),
    };
    for name in order.lines() {
        let module = File::open(dir.join(name)).during(format!("opening module {name}"))?;
        match rustix::system::finit_module(&module, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error).during(format!("loading module {name}")),
        }
    }
    Ok(())
}

fn find_port() -> std::io::Result<Option<PathBuf>> {
    let ports = match fs::read_dir("/sys/class/virtio-ports") {
        Ok(ports) => ports,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    for port in ports {
        let port = port?;
        // The name arrives in a message of its own, after the port itself.
        if fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim() == PORT_NAME) {
            return Ok(Some(Path::new("/dev").join(port.file_name())));
        }
    }
    Ok(None)
}
