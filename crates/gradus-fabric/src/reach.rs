//! At which address of this host a process is reached by others who meet at a place that all know.

use crate::interface;
use crate::secret::Secret;
use crate::settings::{self, NetworkSettings};
use gradus_error::{Error, IoContext, Result};
use std::net::{IpAddr, TcpListener, UdpSocket};

/// A socket at the address from which this process reaches `place`, or that of the interface that is wished for; `listed` is
/// what launchers say of interfaces.
///
/// # Errors
/// `Invalid` when no interface fits the wish or others could not reach this process at it, `Denied` for an address beyond
/// loopback without a secret; the system's failure.
pub(crate) fn listen(
    network: &NetworkSettings,
    listed: &str,
    secret: &Secret,
    place: &str,
) -> Result<TcpListener> {
    let way = way_to(place)?;
    let here = match network.wish(listed, way.is_loopback())? {
        Some((wish, source)) => {
            let here = wish.choose(&interface::of_this_host()?, way, source)?.address;
            check_reachable(here, way, source)?;
            here
        }
        None => way,
    };
    secret.permits(here, "the address to be reached at")?;
    TcpListener::bind((here, 0)).context(|| format!("cannot listen on {here}"))
}

/// Whose meeting place is beyond loopback has members there too, unless a person has said otherwise for this run.
fn check_reachable(here: IpAddr, way: IpAddr, source: &str) -> Result<()> {
    if way.is_loopback() || !here.is_loopback() || source == settings::INTERFACE {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "by {source} this process would be reached at {here}, by nobody on other hosts, but the others are met beyond \
         loopback: name the interface to be reached at in {}",
        settings::INTERFACE
    )))
}

/// The address from which `place` is reached: the kernel's routes know it, and nothing is sent.
fn way_to(place: &str) -> Result<IpAddr> {
    let describe = || format!("cannot find the way to {place}");
    let probe = |any: &str| -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(place)?;
        Ok(socket.local_addr()?.ip())
    };
    probe("0.0.0.0").or_else(|_| probe("::")).context(describe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;

    #[test]
    fn who_would_be_reached_on_loopback_beside_a_far_coordinator_is_refused_unless_a_person_says_so() {
        let [near, far] = ["127.0.0.1", "10.0.0.1"].map(|address| address.parse::<IpAddr>().unwrap());
        let listed = crate::launch::INTERFACES;
        assert_eq!(*check_reachable(near, far, listed).unwrap_err().kind(), Kind::Invalid);
        for (here, way, source) in
            [(near, far, settings::INTERFACE), (near, near, listed), (far, far, listed)]
        {
            check_reachable(here, way, source).unwrap();
        }
    }
}
