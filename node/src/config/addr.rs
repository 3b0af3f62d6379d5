//! Addresses: where a node listens (an IP address), and where others reach it (any host).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest host name, in bytes, as in DNS.
const HOST_BYTES_MAX: usize = 253;

/// `host:port`, taken apart.
pub(super) fn host_port(text: &str) -> Result<(&str, u16), String> {
    let refused = || format!("{text:?} is not host:port, as in 127.0.0.1:7301 or db1.example:7301");
    let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
    let host_is_good = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => is_name(host),
    };
    // Compared as text: the same port in two spellings would be two addresses.
    let number = port
        .parse()
        .ok()
        .filter(|number: &u16| *number > 0 && number.to_string() == port);
    match number {
        Some(number) if host_is_good => Ok((host, number)),
        _ => Err(refused()),
    }
}

fn is_name(host: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    (1..=HOST_BYTES_MAX).contains(&host.len()) && host.bytes().all(good)
}

/// An address of this machine to listen at. Names are not looked up, `localhost` apart: which of
/// a name's addresses is meant is for the operator to say.
pub(super) fn listen(text: &str) -> Result<SocketAddr, String> {
    let (host, port) = host_port(text)?;
    if host == "localhost" {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    text.parse()
        .map_err(|_| format!("{text:?} is not an IP address and a port, as in 127.0.0.1:7301"))
}

/// An address for others to call.
pub(super) fn reachable(text: &str) -> Result<(), String> {
    host_port(text)?;
    match text.parse::<SocketAddr>() {
        Ok(addr) if addr.ip().is_unspecified() => {
            Err(format!("{text:?} is not an address that others can call"))
        }
        _ => Ok(()),
    }
}
