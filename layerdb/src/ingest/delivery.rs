//! The last thread of an ingest: puts contents into the object store, while the next ones are read and hashed.
//!
//! What is written past the page cache waits for the disk, and creating files takes the kernel its time: neither is to
//! keep the others waiting. Contents are not copied on their way here, but shared: they are parts of the tar's chunks.

use std::io;

use crossbeam_channel::{Receiver, Sender};

use super::fault::{Fault, Result};
use super::stream::{CHUNK, Span};
use crate::digest::ObjectId;
use crate::error::Error;
use crate::object::{DIRECT_MIN, Staging, Writer};

/// Deliveries between two threads.
pub(super) const DELIVERIES_QUEUED: usize = 8;

/// Orders in a delivery at most.
const ORDERS: usize = 64;

/// What is to be done with the object at hand.
#[derive(Debug)]
pub(super) enum Order {
    /// These are its next bytes.
    Data(Span),
    /// So many zeros are.
    Hole(u64),
    /// It is complete, and this is its name.
    End(ObjectId),
}

/// Some orders at once, so that a thread isn't woken for each.
pub(super) type Delivery = Vec<Order>;

/// Where the orders are given.
pub(super) struct Deliveries {
    to: Sender<Delivery>,
    next: Delivery,
    bytes: usize,
}

impl Deliveries {
    pub(super) fn new(to: Sender<Delivery>) -> Deliveries {
        Deliveries { to, next: Vec::new(), bytes: 0 }
    }

    /// Gives the next order. An error here only says that there is another one: that of [`deliver`].
    pub(super) fn give(&mut self, order: Order) -> Result<()> {
        if let Order::Data(span) = &order {
            self.bytes += span.len();
        }
        self.next.push(order);
        if self.next.len() >= ORDERS || self.bytes >= CHUNK { self.send() } else { Ok(()) }
    }

    /// The last orders have been given.
    pub(super) fn end(mut self) -> Result<()> {
        self.send()
    }

    fn send(&mut self) -> Result<()> {
        self.bytes = 0;
        self.to
            .send(std::mem::take(&mut self.next))
            .map_err(|_| Fault::Store(Error::io("hand contents on")(io::ErrorKind::BrokenPipe.into())))
    }
}

/// Carries out the orders until there are no more.
pub(super) fn deliver(staging: &mut Staging, from: &Receiver<Delivery>, spare: &Sender<Vec<u8>>) -> Result<(), Error> {
    let mut object = Object::None;
    while let Ok(delivery) = from.recv() {
        for order in delivery {
            object = object.after(order, staging, spare)?;
        }
    }
    Ok(())
}

/// The object at hand.
enum Object {
    None,
    /// This may be all of it.
    Piece(Span),
    Written(Writer),
}

impl Object {
    fn after(self, order: Order, staging: &mut Staging, spare: &Sender<Vec<u8>>) -> Result<Object, Error> {
        match (self, order) {
            (Object::None, Order::Data(span)) => Ok(Object::Piece(span)),
            (Object::Piece(span), Order::End(id)) if span.len() < DIRECT_MIN => {
                staging.add(id, &span)?;
                span.recycle(spare);
                Ok(Object::None)
            }
            (object, Order::End(id)) => {
                let writer = object.into_writer(staging, spare)?;
                staging.finish(writer, id)?;
                Ok(Object::None)
            }
            (object, Order::Data(span)) => {
                let mut writer = object.into_writer(staging, spare)?;
                staging.write(&mut writer, &span)?;
                span.recycle(spare);
                Ok(Object::Written(writer))
            }
            (object, Order::Hole(zeros)) => {
                let mut writer = object.into_writer(staging, spare)?;
                staging.skip(&mut writer, zeros)?;
                Ok(Object::Written(writer))
            }
        }
    }

    fn into_writer(self, staging: &mut Staging, spare: &Sender<Vec<u8>>) -> Result<Writer, Error> {
        match self {
            Object::None => staging.begin(),
            Object::Piece(span) => {
                let mut writer = staging.begin()?;
                staging.write(&mut writer, &span)?;
                span.recycle(spare);
                Ok(writer)
            }
            Object::Written(writer) => Ok(writer),
        }
    }
}
