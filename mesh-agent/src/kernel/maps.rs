//! The pinned maps as typed tables. Every operation is one system call and takes `&self`: the kernel does the locking.

use std::fmt;
use std::marker::PhantomData;
use std::os::fd::AsFd;

use aya::maps::{Map, MapData};
use mesh_common::{
    Address, Backend, BackendKey, Client, ClientKey, Config, Dial, DialKey, Flow, FlowKey, Frontend,
    FrontendKey, Heartbeat, Local, Pair, SkipKey, Verdict, VerdictKey, Workload,
};
use zerocopy::{FromBytes, IntoBytes};

use super::{Error, sys};

/// One map.
pub struct Table<K, V> {
    name: &'static str,
    data: MapData,
    types: PhantomData<fn(K, V)>,
}

impl<K, V> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Table").field(&self.name).finish()
    }
}

impl<K: IntoBytes + FromBytes, V: IntoBytes + FromBytes> Table<K, V> {
    pub(super) fn new(name: &'static str, data: MapData) -> Result<Self, Error> {
        let info = data.info().map_err(|error| Error::Btf(format!("map {name}: {error}")))?;
        if info.key_size() as usize != size_of::<K>() || info.value_size() as usize != size_of::<V>() {
            return Err(Error::Missing { kind: "map of the right layout", name });
        }
        Ok(Self { name, data, types: PhantomData })
    }

    fn fail(&self, operation: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        let map = self.name;
        move |source| Error::Map { map, operation, source }
    }

    /// The value, if there is one.
    ///
    /// # Errors
    /// The system call failed.
    pub fn get(&self, key: &K) -> Result<Option<V>, Error> {
        sys::map_get(self.data.fd().as_fd(), key).map_err(self.fail("read"))
    }

    /// The value, which is gone afterwards.
    ///
    /// # Errors
    /// The system call failed.
    pub fn take(&self, key: &K) -> Result<Option<V>, Error> {
        sys::map_take(self.data.fd().as_fd(), key).map_err(self.fail("take"))
    }

    /// Writes the value as a whole.
    ///
    /// # Errors
    /// The map is full, or the system call failed.
    pub fn put(&self, key: &K, value: &V) -> Result<(), Error> {
        sys::map_put(self.data.fd().as_fd(), key, value).map_err(self.fail("write"))
    }

    /// Writes the value unless there is one already; false when there was.
    ///
    /// # Errors
    /// The map is full, or the system call failed.
    pub fn add(&self, key: &K, value: &V) -> Result<bool, Error> {
        match sys::map_add(self.data.fd().as_fd(), key, value) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            other => other.map(|()| true).map_err(self.fail("add")),
        }
    }

    /// Removes the value; false when there was none.
    ///
    /// # Errors
    /// The system call failed.
    pub fn remove(&self, key: &K) -> Result<bool, Error> {
        sys::map_remove(self.data.fd().as_fd(), key).map_err(self.fail("remove"))
    }

    /// Every key, as far as the map holds still meanwhile.
    ///
    /// # Errors
    /// The system call failed.
    pub fn keys(&self) -> Result<Vec<K>, Error> {
        let mut keys: Vec<K> = Vec::new();
        while let Some(next) =
            sys::map_next_key(self.data.fd().as_fd(), keys.last()).map_err(self.fail("walk"))?
        {
            keys.push(next);
            // A key deleted under the walk restarts it at the front; this bounds the work.
            if keys.len() > 1 << 20 {
                break;
            }
        }
        Ok(keys)
    }
}

/// All tables that the agent reads or writes.
#[derive(Debug)]
pub struct Maps {
    /// Settings of the programs.
    pub config: Table<u32, Config>,
    /// The agent's sign of life.
    pub heartbeat: Table<u32, Heartbeat>,
    /// Enrolled pods by netns cookie.
    pub workloads: Table<u64, Workload>,
    /// Held control groups.
    pub held: Table<u64, u32>,
    /// Control groups of this node's agents, whose sockets are left alone.
    pub agents: Table<u64, u32>,
    /// Pod IPs.
    pub addresses: Table<Address, Local>,
    /// Excluded ports.
    pub skip_ports: Table<SkipKey, u32>,
    /// Service addresses.
    pub frontends: Table<FrontendKey, Frontend>,
    /// Their endpoints.
    pub backends: Table<BackendKey, Backend>,
    /// Open connections per endpoint.
    pub open: Table<u32, u64>,
    /// Verdicts between pods of this node.
    pub verdicts: Table<VerdictKey, Verdict>,
    /// Where caught sockets wanted to go.
    pub dials: Table<DialKey, Dial>,
    /// Whom applications shall see.
    pub clients: Table<ClientKey, Client>,
    /// Authorized flows of this node.
    pub flows: Table<FlowKey, Flow>,
    /// Connections that live in the kernel.
    pub pairs: Table<u64, Pair>,
    /// Sockets of the fast path; only removal makes sense from here.
    pub sockets: Table<u64, u32>,
}

impl Maps {
    pub(super) fn open(ebpf: &mut aya::Ebpf) -> Result<Self, Error> {
        Ok(Self {
            config: table(ebpf, "CONFIG")?,
            heartbeat: table(ebpf, "HEARTBEAT")?,
            workloads: table(ebpf, "WORKLOADS")?,
            held: table(ebpf, "HELD")?,
            agents: table(ebpf, "AGENTS")?,
            addresses: table(ebpf, "ADDRESSES")?,
            skip_ports: table(ebpf, "SKIP_PORTS")?,
            frontends: table(ebpf, "FRONTENDS")?,
            backends: table(ebpf, "BACKENDS")?,
            open: table(ebpf, "OPEN")?,
            verdicts: table(ebpf, "VERDICTS")?,
            dials: table(ebpf, "DIALS")?,
            clients: table(ebpf, "CLIENTS")?,
            flows: table(ebpf, "FLOWS")?,
            pairs: table(ebpf, "PAIRS")?,
            sockets: table(ebpf, "SOCKETS")?,
        })
    }
}

fn table<K, V>(ebpf: &mut aya::Ebpf, name: &'static str) -> Result<Table<K, V>, Error>
where
    K: IntoBytes + FromBytes,
    V: IntoBytes + FromBytes,
{
    let Some(
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::SockHash(data)
        | Map::SockMap(data),
    ) = ebpf.take_map(name)
    else {
        return Err(Error::Missing { kind: "map", name });
    };
    Table::new(name, data)
}
