//! What is in the named namespaces at this moment, for commands that look once.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
};

use super::{
    Entrance, Selection,
    choose::{Choice, choose},
    look::{self, Seen, look},
    not_entered,
};
use crate::netdev::{Namespace, NamespaceId, monitor};

/// Returns the netdevs of every namespace that is meant, without following any, and of those that can't be asked why.
///
/// The numbers are of no meaning.
///
/// # Errors
///
/// When the directory can't be read.
pub fn dump(
    directory: &Path,
    selection: &Selection,
) -> io::Result<(BTreeMap<NamespaceId, Namespace>, BTreeMap<String, String>)> {
    let mut dumped = BTreeMap::new();
    if !selection.is_on() {
        return Ok((dumped, BTreeMap::new()));
    }
    let own = look::number(&Entrance::own()?.0)?;
    let Seen { namespaces, denied, mut failed, .. } = look(directory, selection)?;
    failed.extend(denied);
    let names = namespaces.iter().map(|(name, (number, _))| (name.clone(), *number)).collect();
    let Choice { here, refused, .. } = choose(&names, &BTreeSet::new(), &BTreeMap::new(), own);
    failed.extend(refused);
    for ((_, name), number) in here.into_iter().zip((1..).map(NamespaceId)) {
        let Some((_, entrance)) = namespaces.get(&name) else { continue };
        match entrance.enter(|| monitor::dump().map_err(|error| error.to_string())) {
            Ok(Ok(table)) => drop(dumped.insert(number, Namespace { name, table })),
            Ok(Err(why)) => drop(failed.insert(name, why)),
            Err(error) => drop(failed.insert(name, not_entered(&error))),
        }
    }
    Ok((dumped, failed))
}
