//! `lbctl import`: needs no cluster.

use std::path::Path;

use crate::{
    cli::{Format, Import},
    declared,
    exit::{Failure, complain},
    import::{Imported, ipvsadm, keepalived},
    output,
};

pub(super) fn run(format: Format, of: Import) -> Result<(), Failure> {
    let is_keepalived = of.keepalived.is_some();
    let (file, imported) = match of {
        Import { keepalived: Some(file), .. } => {
            let text = read(&file)?;
            let imported = keepalived(&text);
            let imported = imported.map_err(|fault| Failure::of_file(&file, fault))?;
            (file, imported)
        }
        Import { ipvsadm: Some(file), .. } => {
            let imported = ipvsadm(&read(&file)?);
            (file, imported)
        }
        Import { .. } => return Err(Failure::Usage("name --keepalived FILE or --ipvsadm FILE".to_owned())),
    };
    let Imported { document, notes } = imported;
    if document.objects.is_empty() {
        let what = if is_keepalived { "virtual_server or virtual_ipaddress of keepalived" } else { "rule of ipvsadm" };
        return Err(Failure::of_file(&file, format!("there is no {what} in it that becomes anything here")));
    }
    for (line, note) in &notes {
        complain(&format!("{}: line {line}: {note}", file.display()));
    }
    output::object(format.of_file(), &declared::document(&document.objects, None).without_empty_lists())
}

/// Comments are in whatever encoding their writer had.
fn read(file: &Path) -> Result<String, Failure> {
    Ok(String::from_utf8_lossy(&super::declared::read(file)?).into_owned())
}
