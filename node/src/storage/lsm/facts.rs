//! What the library does, fact by fact, so that an upgrade that changes one is noticed.
