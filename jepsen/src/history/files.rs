//! Histories as files: JSON lines.
