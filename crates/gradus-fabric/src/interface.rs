//! Which of a host's addresses its rank is reached at by its peers.
//!
//! Without a wish it is the address from which rank 0 is reached: the kernel's routes know the way. A wish is a list as
//! NCCL's `NCCL_SOCKET_IFNAME` has it (NCCL, environment variables): names between commas, each the beginning of an
//! interface's name; `=` before the list makes them whole names, `^` excludes all that match. Earlier names are
//! preferred; an address of the family in which rank 0 is met, before one of the other.
//!
//! Addresses that are valid on one link only are never chosen, and loopback only when it is named. Choosing is pure.

use gradus_error::{Error, Result};
use std::net::IpAddr;

/// An address of this host, and the interface that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
}

/// What a person wishes about interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wish {
    excluding: bool,
    exact: bool,
    names: Vec<String>,
}

impl Wish {
    /// Reads a list; `source` names the setting or variable it stands in.
    ///
    /// # Errors
    /// `Invalid` for a list without a name, or with `^` or `=` elsewhere than before it.
    pub(crate) fn parse(list: &str, source: &str) -> Result<Self> {
        let rest = list.trim();
        let (excluding, rest) = strip(rest, '^');
        let (exact, rest) = strip(rest, '=');
        let names = rest.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned);
        let wish = Self { excluding, exact, names: names.collect() };
        if wish.names.is_empty() || wish.names.iter().any(|name| name.contains(['^', '='])) {
            return Err(Error::invalid(format!(
                "{source} is {list:?}: give names of interfaces between commas, such as eth0,ib (beginnings), =eth0 \
                 (exactly) or ^lo,docker (all but these)"
            )));
        }
        Ok(wish)
    }

    /// How much an interface is wished for, least first; `None` for not at all.
    fn preference(&self, interface: &Interface) -> Option<usize> {
        let matches = |name: &String| {
            if self.exact { interface.name == *name } else { interface.name.starts_with(name) }
        };
        let found = self.names.iter().position(matches);
        match self.excluding {
            false => found,
            true => (found.is_none() && !interface.address.is_loopback()).then_some(0),
        }
    }

    /// The interface to be reached at, among those of the host; `like` is where rank 0 is met.
    ///
    /// # Errors
    /// `Invalid` when none fits, with those there are.
    pub(crate) fn choose(&self, interfaces: &[Interface], like: IpAddr, source: &str) -> Result<Interface> {
        let like = like.to_canonical();
        let fits = interfaces.iter().filter(|interface| is_routable(interface.address));
        let wished = fits.filter_map(|interface| Some((self.preference(interface)?, interface)));
        let best = wished.min_by_key(|(preference, interface)| {
            (interface.address.is_ipv4() != like.is_ipv4(), *preference)
        });
        best.map(|(_, interface)| interface.clone()).ok_or_else(|| self.no_fit(interfaces, source))
    }

    fn no_fit(&self, interfaces: &[Interface], source: &str) -> Error {
        let there: Vec<String> =
            interfaces.iter().take(16).map(|found| format!("{} ({})", found.name, found.address)).collect();
        Error::invalid(format!(
            "no interface of this host that others can reach fits {source}; there are {}",
            there.join(", ")
        ))
    }
}

fn strip(text: &str, sign: char) -> (bool, &str) {
    match text.strip_prefix(sign) {
        Some(rest) => (true, rest),
        None => (false, text),
    }
}

/// Whether an address means the same on every link: no link-local one (RFC 3927, RFC 4291 section 2.5.6), no group, no
/// wildcard.
fn is_routable(address: IpAddr) -> bool {
    let link_local = match address.to_canonical() {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(link_local || address.is_multicast() || address.is_unspecified())
}

/// The addresses of this host's interfaces that are up.
///
/// # Errors
/// The system's failure.
pub(crate) fn of_this_host() -> Result<Vec<Interface>> {
    let found = if_addrs::get_if_addrs()
        .map_err(|error| Error::io("cannot list the network interfaces of this host", error))?;
    let up = found.into_iter().filter(if_addrs::Interface::is_oper_up);
    Ok(up.map(|interface| Interface { address: interface.ip(), name: interface.name }).collect())
}

/// The name of this host's interface that has `address`, empty when there is none.
pub fn interface_of(address: IpAddr) -> String {
    let address = address.to_canonical();
    let found = of_this_host().unwrap_or_default().into_iter().find(|found| found.address == address);
    found.map(|interface| interface.name).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gradus_error::Kind;
    use proptest::prelude::*;

    fn host() -> Vec<Interface> {
        let pairs = [
            ("lo", "127.0.0.1"),
            ("lo", "::1"),
            ("docker0", "172.17.0.1"),
            ("eth0", "169.254.3.3"),
            ("eth0", "fe80::1"),
            ("eth0", "fd00::10"),
            ("eth0", "10.0.0.10"),
            ("eth1", "10.0.1.10"),
            ("ib0", "192.168.0.10"),
        ];
        let interface = |(name, address): (&str, &str)| Interface {
            name: name.into(),
            address: address.parse().unwrap(),
        };
        pairs.map(interface).into()
    }

    fn choose(list: &str, like: &str) -> Result<String> {
        let chosen = Wish::parse(list, "it")?.choose(&host(), like.parse().unwrap(), "it")?;
        Ok(chosen.address.to_string())
    }

    #[test]
    fn names_beginnings_and_exclusions_are_understood() {
        let cases = [
            ("eth1", "10.0.9.9", "10.0.1.10"),
            ("eth", "10.0.9.9", "10.0.0.10"),
            ("eth", "fd00::9", "fd00::10"),
            ("eth", "::ffff:10.0.9.9", "10.0.0.10"),
            ("ib,eth", "10.0.9.9", "192.168.0.10"),
            ("=eth1, ib0", "10.0.9.9", "10.0.1.10"),
            ("^lo,docker", "10.0.9.9", "10.0.0.10"),
            ("^=eth0,docker0", "10.0.9.9", "10.0.1.10"),
            ("^eth,docker", "10.0.9.9", "192.168.0.10"),
            ("lo", "127.0.0.1", "127.0.0.1"),
            // No address of rank 0's family: the other one.
            ("ib0", "fd00::9", "192.168.0.10"),
        ];
        for (list, like, expected) in cases {
            assert_eq!(choose(list, like).unwrap(), expected, "{list}");
        }
    }

    #[test]
    fn what_fits_nothing_is_named_with_what_there_is() {
        for list in ["wlan0", "=eth", "^eth,docker,ib"] {
            let error = choose(list, "10.0.9.9").unwrap_err();
            assert_eq!(*error.kind(), Kind::Invalid);
            assert!(error.to_string().contains("ib0 (192.168.0.10)"), "{error}");
        }
        for list in ["", " , ", "^", "=", "eth0,=eth1", "eth0,^lo", "=^lo"] {
            assert_eq!(*Wish::parse(list, "it").unwrap_err().kind(), Kind::Invalid, "{list}");
        }
    }

    #[test]
    fn this_host_has_a_loopback_interface() {
        let found = of_this_host().unwrap();
        assert!(found.iter().any(|interface| interface.address.is_loopback()), "{found:?}");
        assert!(!interface_of("127.0.0.1".parse().unwrap()).is_empty());
        assert_eq!(interface_of("192.0.2.77".parse().unwrap()), "");
    }

    proptest! {
        #[test]
        fn whatever_is_chosen_was_wished_for_and_is_routable(
            list in "[\\^=]{0,2}[a-c0-2=^]{0,3}(,[a-c0-2 ]{0,3}){0,3}",
            names in proptest::collection::vec("[a-c]{1,2}[0-2]?", 0..6),
            addresses in proptest::collection::vec(any::<IpAddr>(), 6),
            like: IpAddr,
        ) {
            let Ok(wish) = Wish::parse(&list, "it") else { return Ok(()) };
            let interfaces: Vec<Interface> =
                names.into_iter().zip(addresses).map(|(name, address)| Interface { name, address }).collect();
            let fits = |interface: &Interface| {
                let named = wish.names.iter().any(|name| match wish.exact {
                    true => interface.name == *name,
                    false => interface.name.starts_with(name.as_str()),
                });
                named != wish.excluding && is_routable(interface.address)
                    && !(wish.excluding && interface.address.is_loopback())
            };
            match wish.choose(&interfaces, like, "it") {
                Ok(chosen) => prop_assert!(fits(&chosen) && interfaces.contains(&chosen)),
                Err(_) => prop_assert!(!interfaces.iter().any(fits)),
            }
        }

        #[test]
        fn any_text_is_read_or_refused(list in ".{0,80}") {
            let _ = Wish::parse(&list, "it");
        }
    }
}
