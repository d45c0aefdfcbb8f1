//! Lines to those whom this node asks: called by threads that end when it is done, one at a time for each peer.

use super::Keeper;
use crate::peers::Place;
use crate::peers::inbox::Command;
use crate::peers::line::Line;
use crate::peers::patience::Tell;
use crate::peers::protocol::{Hello, Welcome};
use gradus_error::{Error, Result};
use gradus_fabric::service::{self, Connection, Keys};
use gradus_host::machine::Event;
use gradus_host::{Clock, RealClock};
use std::sync::Arc;
use std::time::Duration;

impl Keeper {
    pub(super) fn dial(&mut self, peer: u64) {
        let Some(known) = self.known.get(&peer) else { return };
        let (inbox, keys, hello) = (Arc::clone(&self.inbox), self.keys.clone(), self.hello.clone());
        let (place, limit) = (known.place.clone(), self.settings.most_patience);
        let dialling = std::thread::Builder::new().name("gradus-dial".into()).spawn(move || {
            let outcome = meet(&keys, &place, &hello, limit);
            inbox.push(Command::Dialled { peer, outcome });
        });
        if let Err(error) = dialling {
            let outcome = Err(Error::io("cannot start a thread to connect", error));
            self.inbox.push(Command::Dialled { peer, outcome });
        }
    }

    pub(super) fn dialled(&mut self, peer: u64, outcome: Result<Connection>) {
        // One that was dropped meanwhile is not to be asked.
        let Some(known) = self.known.get_mut(&peer) else { return };
        match outcome {
            Ok(connection) => {
                known.line = Some(Line::new(connection));
                known.complained = false;
                self.tell(Event::Command(Tell::Connected { peer }));
            }
            Err(error) => {
                let node = &known.place.member.node;
                if !std::mem::replace(&mut known.complained, true) {
                    tracing::warn!("node {node} cannot be asked for blocks, the bucket is: {error}");
                }
                self.tell(Event::Command(Tell::Unreachable { peer }));
            }
        }
    }
}

/// Connects to a peer that this node will ask.
fn meet(keys: &Keys, place: &Place, hello: &Hello, limit: Duration) -> Result<Connection> {
    let (clock, node) = (RealClock::new(), &place.member.node);
    let whom = format!("node {node}");
    let (connection, answer) = service::call(keys, place.address, &whom, hello, &clock, clock.now() + limit)?;
    match service::understand(&answer).map_err(|error| error.within(&whom))? {
        Welcome::Come { node: found } if found == *node => Ok(connection),
        Welcome::Come { node: found } => {
            Err(Error::invalid(format!("at {} is node {found:.64}, not {node}", place.address)))
        }
        Welcome::Refused { reason } => Err(Error::denied(format!("{whom} refuses this node: {reason:.256}"))),
    }
}
