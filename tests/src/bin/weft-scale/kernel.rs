//! The agent's pinned maps, read as anybody with the rights can read them.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context, Result};
use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError};
use mesh_common::{Address, Backend, BackendKey, Frontend, FrontendKey, Local};

use super::plan::{POD_PORT, SERVICE_PORT};

/// IP protocol number of TCP.
const TCP: u16 = 6;

/// The maps in which changes show.
pub struct Kernel {
    frontends: HashMap<MapData, FrontendKey, Frontend>,
    backends: HashMap<MapData, BackendKey, Backend>,
    addresses: HashMap<MapData, Address, Local>,
}

impl Kernel {
    /// Opens the maps that an agent has pinned in `dir`.
    pub fn open(dir: &Path) -> Result<Self> {
        Ok(Self {
            frontends: open(dir, "FRONTENDS")?,
            backends: open(dir, "BACKENDS")?,
            addresses: open(dir, "ADDRESSES")?,
        })
    }

    /// Whether the mesh knows a pod of this address.
    pub fn has_address(&self, ip: Ipv4Addr) -> Result<bool> {
        Ok(found(self.addresses.get(&Address::from(IpAddr::V4(ip)), 0))?.is_some())
    }

    /// How many endpoints a service has; none when it is not there.
    pub fn endpoint_count(&self, vip: Ipv4Addr) -> Result<Option<usize>> {
        Ok(self.frontend(vip)?.map(|frontend| frontend.count as usize))
    }

    /// Whether a service has an endpoint.
    pub fn has_endpoint(&self, vip: Ipv4Addr, ip: Ipv4Addr) -> Result<bool> {
        let Some(frontend) = self.frontend(vip)? else { return Ok(false) };
        let wanted = Address::from(IpAddr::V4(ip));
        for index in 0..frontend.count {
            let key = BackendKey { service: frontend.service, index };
            let backend = found(self.backends.get(&key, 0))?;
            if backend.is_some_and(|backend| backend.address == wanted && backend.port == POD_PORT) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn frontend(&self, vip: Ipv4Addr) -> Result<Option<Frontend>> {
        let address = Address::from(IpAddr::V4(vip));
        found(self.frontends.get(&FrontendKey { address, port: SERVICE_PORT, protocol: TCP, reserved: 0 }, 0))
    }
}

fn open<K: Pod, V: Pod>(dir: &Path, name: &str) -> Result<HashMap<MapData, K, V>> {
    let path = dir.join(name);
    let data = MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
    HashMap::try_from(Map::from_map_data(data)?).with_context(|| format!("{name} has another layout"))
}

fn found<V>(read: Result<V, MapError>) -> Result<Option<V>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error).context("cannot read a map"),
    }
}
