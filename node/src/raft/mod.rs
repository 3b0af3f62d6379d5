//! openraft's traits on top of WAL and storage, and the seam to other nodes.

pub mod transport;
