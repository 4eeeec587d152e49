//! The proxy between real sockets: an application and a node that are not there.

mod behaviour;
mod nodes;
mod protocols;
