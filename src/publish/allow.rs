//! Where registered clients may be: the networks that this process sends messages into.
//!
//! Whoever may POST to `/register` chooses an address that this program then talks to. So an address is judged once, after
//! its name was looked up, and it is that address the messages go to: a name that points elsewhere later changes nothing.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Networks, as `127.0.0.0/8` or a single address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct AllowList(Vec<IpNet>);

impl Default for AllowList {
    /// This machine itself.
    fn default() -> Self {
        let loopback = [IpAddr::from([127, 0, 0, 0]), IpAddr::from(std::net::Ipv6Addr::LOCALHOST)];
        let network = |(address, prefix)| IpNet::new_assert(address, prefix);
        Self(loopback.into_iter().zip([8, 128]).map(network).collect())
    }
}

impl TryFrom<Vec<String>> for AllowList {
    type Error = String;

    fn try_from(texts: Vec<String>) -> Result<Self, String> {
        let network = |text: &String| {
            let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            network.map_err(|_| format!("'{text}' is no network such as 10.0.0.0/8, and no address"))
        };
        texts.iter().map(network).collect::<Result<_, _>>().map(Self)
    }
}

impl From<AllowList> for Vec<String> {
    fn from(AllowList(networks): AllowList) -> Self {
        networks.iter().map(ToString::to_string).collect()
    }
}

impl AllowList {
    /// Whether messages may be sent there. An IPv4 address in IPv6's clothes is judged as what it is.
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The one of these addresses that is used: the first that is allowed, of IPv4 before IPv6.
    pub fn choose(&self, addresses: impl IntoIterator<Item = IpAddr>) -> Option<IpAddr> {
        let canonical = addresses.into_iter().map(|address| address.to_canonical());
        canonical.filter(|address| self.allows(*address)).min_by_key(IpAddr::is_ipv6)
    }
}

impl std::fmt::Display for AllowList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&Vec::from(self.clone()).join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(networks: &[&str]) -> Result<AllowList, String> {
        AllowList::try_from(networks.iter().map(|&text| text.to_owned()).collect::<Vec<_>>())
    }

    fn allows(list: &AllowList, address: &str) -> bool {
        list.allows(address.parse().unwrap())
    }

    #[test]
    fn only_this_machine_unless_more_is_said() {
        let own = AllowList::default();
        assert_eq!(own.to_string(), "127.0.0.0/8, ::1/128");
        assert!(allows(&own, "127.0.0.1") && allows(&own, "127.8.9.1") && allows(&own, "::1"));
        for outside in ["10.0.0.1", "0.0.0.0", "::", "169.254.169.254", "192.168.1.1", "fe80::1", "8.8.8.8"] {
            assert!(!allows(&own, outside), "{outside}");
        }
    }

    #[test]
    fn an_ipv4_address_within_ipv6_is_judged_as_ipv4() {
        assert!(allows(&AllowList::default(), "::ffff:127.0.0.1"));
        assert!(!allows(&AllowList::default(), "::ffff:10.0.0.1"));
        assert!(!allows(&list(&["::/0"]).unwrap(), "::ffff:10.0.0.1"), "all of IPv6 is nothing of IPv4");
    }

    #[test]
    fn networks_and_single_addresses_are_read_and_nonsense_is_named() {
        let some = list(&["10.1.0.0/16", "192.0.2.7"]).unwrap();
        assert!(allows(&some, "10.1.2.3") && allows(&some, "192.0.2.7"));
        assert!(!allows(&some, "10.2.0.1") && !allows(&some, "192.0.2.8") && !allows(&some, "127.0.0.1"));
        assert!(list(&["10.0.0.0/33"]).unwrap_err().contains("10.0.0.0/33"));
        assert!(list(&["localhost"]).is_err());
        assert!(!allows(&list(&[]).unwrap(), "127.0.0.1"), "an empty list allows nothing");
    }

    #[test]
    fn of_several_addresses_the_first_allowed_one_is_used() {
        let choose = |addresses: &[&str]| {
            let chosen = AllowList::default().choose(addresses.iter().map(|text| text.parse().unwrap()));
            chosen.map(|address| address.to_string())
        };
        assert_eq!(choose(&["::1", "10.0.0.1", "127.0.0.1"]).as_deref(), Some("127.0.0.1"));
        assert_eq!(choose(&["10.0.0.1", "::1"]).as_deref(), Some("::1"));
        assert_eq!(choose(&["10.0.0.1"]), None);
    }
}
