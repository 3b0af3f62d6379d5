//! Histories in Jepsen's form.
