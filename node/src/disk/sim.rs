//! TEMPORARY stand-in.
#![allow(missing_docs)]
use super::*; use std::collections::BTreeMap; use std::path::PathBuf; use parking_lot::Mutex;
#[derive(Clone, Debug, Default)] pub struct SimDisk(Arc<Mutex<BTreeMap<PathBuf, SF>>>);
#[derive(Clone, Debug, Default)] pub struct SF(Arc<Mutex<Vec<u8>>>);
impl SimDisk { pub fn new(_: u64) -> Self { Self::default() } pub fn crash(&self, _: u64) {} }
impl Disk for SimDisk {
 fn open(&self, p: &Path, m: Mode) -> io::Result<SharedFile> { let mut s = self.0.lock(); match (s.get(p), m) { (None, Mode::CreateNew) => { let f = SF::default(); s.insert(p.into(), f.clone()); Ok(Arc::new(f)) } (Some(_), Mode::CreateNew) => Err(io::ErrorKind::AlreadyExists.into()), (None, _) => Err(io::ErrorKind::NotFound.into()), (Some(f), _) => Ok(Arc::new(f.clone())) } }
 fn list(&self, d: &Path) -> io::Result<Vec<DirEntry>> { Ok(self.0.lock().iter().filter(|(p,_)| p.parent() == Some(d)).map(|(p,f)| DirEntry{name: p.file_name().unwrap().to_string_lossy().into(), is_dir: false, len_bytes: f.0.lock().len() as u64}).collect()) }
 fn create_dir_all(&self, _: &Path) -> io::Result<()> { Ok(()) } fn rename(&self, a: &Path, b: &Path) -> io::Result<()> { let mut s = self.0.lock(); let f = s.remove(a).ok_or(io::ErrorKind::NotFound)?; s.insert(b.into(), f); Ok(()) }
 fn remove_file(&self, p: &Path) -> io::Result<()> { self.0.lock().remove(p); Ok(()) } fn remove_dir_all(&self, _: &Path) -> io::Result<()> { Ok(()) } fn sync_dir(&self, _: &Path) -> io::Result<()> { Ok(()) } fn exists(&self, p: &Path) -> io::Result<bool> { Ok(self.0.lock().contains_key(p)) }
 fn lock_dir(&self, _: &Path) -> io::Result<Box<dyn Send + Sync>> { Ok(Box::new(())) } fn spawn(&self, job: Box<dyn FnOnce() + Send>) { tokio::spawn(async move { job() }); } }
impl DiskFile for SF { fn read_at(&self, o: u64, b: &mut [u8]) -> io::Result<usize> { let s = self.0.lock(); let o = (o as usize).min(s.len()); let n = b.len().min(s.len()-o); b[..n].copy_from_slice(&s[o..o+n]); Ok(n) } fn write_at(&self, o: u64, d: &[u8]) -> io::Result<()> { let mut s = self.0.lock(); let e = o as usize + d.len(); if s.len() < e { s.resize(e, 0); } s[o as usize..e].copy_from_slice(d); Ok(()) } fn sync_data(&self) -> io::Result<()> { Ok(()) } fn len_bytes(&self) -> io::Result<u64> { Ok(self.0.lock().len() as u64) } fn allocate(&self, _: u64) -> io::Result<()> { Ok(()) } fn set_len(&self, l: u64) -> io::Result<()> { self.0.lock().resize(l as usize, 0); Ok(()) } fn drop_cached(&self) -> io::Result<()> { Ok(()) } }
