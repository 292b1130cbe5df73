//! T
/// T
pub struct Tokenizer;
impl Tokenizer{ /// s
 pub fn save(&self,_d:&std::path::Path,_m:usize)->crate::Result<()>{Ok(())}}
