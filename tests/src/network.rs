//! Networks that a test makes for itself: namespaces, joined by a bridge, whose wires can be pulled out.
//!
//! Needs root, Linux and iproute2. All that is made has the id of the test's process in its name, and is removed on drop.

use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// A bridge, and namespaces that hang on it, each with one wire and one address.
#[derive(Debug)]
pub struct Network {
    bridge: String,
    spaces: Vec<Space>,
}

/// One namespace. Processes in it reach those of the others over the bridge.
#[derive(Debug)]
struct Space {
    name: String,
    /// The end of its wire outside, which hangs on the bridge.
    wire: String,
    address: Ipv4Addr,
}

impl Network {
    /// So many namespaces that reach each other, or why this machine can't have them.
    ///
    /// # Errors
    /// When something of what is needed is not there, in a sentence.
    pub fn make(spaces: usize) -> Result<Self, String> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        // Names of interfaces have at most 15 characters.
        let base = format!("ac{}x{number}", std::process::id());
        // A part of 198.18.0.0/15, which is set apart for tests, for each network of each process.
        let subnet = (std::process::id().wrapping_mul(8).wrapping_add(number) % 0x1fff) as u16;
        let host = |host: u8| Ipv4Addr::from(0xc612_0000 + (u32::from(subnet) << 4) + u32::from(host));
        let mut network = Self { bridge: format!("{base}b"), spaces: Vec::new() };
        ip(&["link", "add", &network.bridge, "type", "bridge"])?;
        ip(&["link", "set", &network.bridge, "up"])?;
        for index in 0..spaces {
            let (name, wire, inner) = (format!("{base}n{index}"), format!("{base}w{index}"), format!("{base}i{index}"));
            let address = host(u8::try_from(index).map_err(|_| "too many namespaces")? + 1);
            ip(&["netns", "add", &name])?;
            network.spaces.push(Space { name: name.clone(), wire: wire.clone(), address });
            ip(&["link", "add", &wire, "type", "veth", "peer", "name", &inner])?;
            ip(&["link", "set", &inner, "netns", &name])?;
            ip(&["link", "set", &wire, "master", &network.bridge])?;
            ip(&["link", "set", &wire, "up"])?;
            ip(&["-n", &name, "addr", "add", &format!("{address}/28"), "dev", &inner])?;
            ip(&["-n", &name, "link", "set", &inner, "up"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
        }
        Ok(network)
    }

    /// The address of a namespace.
    pub fn address(&self, space: usize) -> IpAddr {
        self.spaces[space].address.into()
    }

    /// The name of a namespace, for `ip netns exec`.
    pub fn name(&self, space: usize) -> &str {
        &self.spaces[space].name
    }

    /// Pulls the wire of a namespace out: nothing gets in or out, and nobody is told.
    #[track_caller]
    pub fn unplug(&self, space: usize) {
        must(&["link", "set", &self.spaces[space].wire, "down"]);
    }

    /// Puts it in again.
    #[track_caller]
    pub fn plug(&self, space: usize) {
        must(&["link", "set", &self.spaces[space].wire, "up"]);
    }

    /// From now on nothing gets from one namespace to another, while everything gets the other way: one knows a wrong
    /// hardware address of the other.
    #[track_caller]
    pub fn cut_one_way(&self, from: usize, to: usize) {
        let (name, to) = (&self.spaces[from].name, self.spaces[to].address.to_string());
        must(&[
            "-n",
            name,
            "neigh",
            "replace",
            &to,
            "lladdr",
            "02:00:00:00:00:01",
            "dev",
            &self.inner(from),
            "nud",
            "permanent",
        ]);
    }

    /// Everything gets through again.
    #[track_caller]
    pub fn heal_one_way(&self, from: usize, to: usize) {
        let (name, to) = (&self.spaces[from].name, self.spaces[to].address.to_string());
        must(&["-n", name, "neigh", "del", &to, "dev", &self.inner(from)]);
    }

    fn inner(&self, space: usize) -> String {
        self.spaces[space].wire.replace('w', "i")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for space in &self.spaces {
            // The wire goes with either of its ends, and is there no more if it was never made.
            let _ = ip(&["link", "del", &space.wire]);
            let _ = ip(&["netns", "del", &space.name]);
        }
        let _ = ip(&["link", "del", &self.bridge]);
    }
}

/// Runs `ip`.
fn ip(arguments: &[&str]) -> Result<Output, String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("can't run ip: {error}"))?;
    if output.status.success() {
        Ok(output)
    } else {
        Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
    }
}

#[track_caller]
fn must(arguments: &[&str]) {
    if let Err(why) = ip(arguments) {
        panic!("{why}");
    }
}
