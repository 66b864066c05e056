//! `lbctl import`: needs no cluster.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use crate::{
    cli::{Format, Import},
    declared,
    exit::{Failure, complain},
    import::{Imported, ipvsadm, keepalived},
    output,
};

pub(super) fn run(format: Format, of: Import) -> Result<(), Failure> {
    let (file, imported) = match of {
        Import { keepalived: Some(file), .. } => {
            let text = read(&file)?;
            let imported = keepalived(&text);
            let imported = imported.map_err(|fault| Failure::Usage(format!("{}: {fault}", file.display())))?;
            (file, imported)
        }
        Import { ipvsadm: Some(file), .. } => {
            let imported = ipvsadm(&read(&file)?);
            (file, imported)
        }
        Import { .. } => return Err(Failure::Usage("name --keepalived FILE or --ipvsadm FILE".to_owned())),
    };
    let Imported { document, notes } = imported;
    for (line, note) in &notes {
        complain(&format!("{}: line {line}: {note}", file.display()));
    }
    // For a file; a table would be none.
    let format = if format == Format::Json { Format::Json } else { Format::Yaml };
    output::object(format, &declared::document(&document.objects, None))
}

fn read(file: &PathBuf) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = if file == Path::new("-") {
        io::stdin().lock().read_to_end(&mut bytes).map(drop)
    } else {
        fs::read(file).map(|all| bytes = all)
    };
    read.map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?;
    // Comments are in whatever encoding their writer had.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
