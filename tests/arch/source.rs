//! The imports of a crate's files, read from its source: `use` items and paths that start at the crate, at the file or above
//! it. Tests are left out, and so are re-exports, which are followed to what they name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use syn::{
    Attribute, File, ImplItem, Item, ItemUse, Meta, UseTree, Visibility,
    visit::{self, Visit},
};

/// A module, by the names on its way from the crate's root, which is empty.
pub(crate) type Module = Vec<String>;

/// Each module of a crate, and the modules whose items it uses.
pub(crate) type Imports = BTreeMap<Module, BTreeSet<Module>>;

/// Reads a crate's `src` folder.
pub(crate) fn imports(src: &Path) -> Imports {
    let mut files = BTreeMap::new();
    read(src, src, &mut files);
    resolve(&files)
}

/// The same from texts, by module.
pub(crate) fn imports_of(texts: &[(&str, &str)]) -> Imports {
    let parse = |(module, text): &(&str, &str)| {
        (split(module), syn::parse_file(text).unwrap_or_else(|error| panic!("{module}: {error}")))
    };
    resolve(&texts.iter().map(parse).collect())
}

/// `a::b` in its parts.
pub(crate) fn split(path: &str) -> Module {
    path.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn read(src: &Path, folder: &Path, files: &mut BTreeMap<Module, File>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "bin" && name != "__fuzz__") {
                read(src, &path, files);
            }
            continue;
        }
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        if path.extension().is_none_or(|ending| ending != "rs") || stem == "tests" {
            continue;
        }
        let folder = path.parent().unwrap().strip_prefix(src).unwrap();
        let mut module: Module = folder.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if !["mod", "lib", "main"].contains(&stem.as_str()) {
            module.push(stem);
        }
        let text = fs::read_to_string(&path).unwrap();
        files.insert(module, syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
    }
}

fn resolve(files: &BTreeMap<Module, File>) -> Imports {
    let only_tests: BTreeSet<Module> = files.iter().flat_map(|(module, file)| test_modules(module, file)).collect();
    let files: BTreeMap<&Module, &File> =
        files.iter().filter(|(module, _)| !only_tests.iter().any(|test| module.starts_with(test))).collect();
    let exported: BTreeMap<Module, Module> = files.iter().flat_map(|(module, file)| re_exports(module, file)).collect();
    let found = files.iter().map(|(module, file)| {
        let mut uses = Uses { module: (*module).clone(), paths: Vec::new() };
        uses.visit_file(file);
        let target = |path: Module| of_item(path, &exported, |module| files.contains_key(module));
        let others = uses.paths.into_iter().filter_map(target).filter(|other| other != *module);
        ((*module).clone(), others.collect())
    });
    found.collect()
}

/// The module that an item is in, past all re-exports.
fn of_item(
    mut path: Module,
    exported: &BTreeMap<Module, Module>,
    is_module: impl Fn(&Module) -> bool,
) -> Option<Module> {
    // Longer than any chain of re-exports here.
    for _ in 0..16 {
        let at = (1..=path.len()).find(|len| exported.contains_key(&path[..*len]));
        let Some(at) = at else { break };
        path = [&exported[&path[..at]], &path[at..]].concat();
    }
    (0..=path.len()).rev().map(|len| path[..len].to_vec()).find(is_module)
}

/// The names that a file passes on, and what they stand for.
fn re_exports(module: &Module, file: &File) -> Vec<(Module, Module)> {
    let mut found = Vec::new();
    for item in &file.items {
        if let Item::Use(item) = item
            && !matches!(item.vis, Visibility::Inherited)
        {
            for (path, name) in leaves(item) {
                if let Some(path) = absolute(module, &path) {
                    found.push(([module.as_slice(), &[name]].concat(), path));
                }
            }
        }
    }
    found
}

/// The modules that a file declares for tests alone.
fn test_modules(module: &Module, file: &File) -> Vec<Module> {
    let declared = file.items.iter().filter_map(|item| match item {
        Item::Mod(item) if is_test(&item.attrs) => Some([module.as_slice(), &[item.ident.to_string()]].concat()),
        _ => None,
    });
    declared.collect()
}

struct Uses {
    module: Module,
    paths: Vec<Module>,
}

impl Visit<'_> for Uses {
    fn visit_item(&mut self, item: &Item) {
        let attributes = match item {
            Item::Mod(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            _ => &Vec::new(),
        };
        if !is_test(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &ImplItem) {
        if !matches!(item, ImplItem::Fn(function) if is_test(&function.attrs)) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &ItemUse) {
        if matches!(item.vis, Visibility::Inherited) {
            let paths = leaves(item).into_iter().filter_map(|(path, _)| absolute(&self.module, &path));
            self.paths.extend(paths);
        }
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let parts: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if parts.len() > 1 {
            self.paths.extend(absolute(&self.module, &parts));
        }
        visit::visit_path(self, path);
    }

    fn visit_visibility(&mut self, _: &Visibility) {}
}

/// The paths of a `use`, and the names that they get.
fn leaves(item: &ItemUse) -> Vec<(Vec<String>, String)> {
    fn walk(tree: &UseTree, before: &[String], found: &mut Vec<(Vec<String>, String)>) {
        let with = |name: String| [before, &[name]].concat();
        match tree {
            UseTree::Path(path) => walk(&path.tree, &with(path.ident.to_string()), found),
            UseTree::Name(name) if name.ident == "self" => {
                found.push((before.to_vec(), before.last().cloned().unwrap_or_default()));
            }
            UseTree::Name(name) => found.push((with(name.ident.to_string()), name.ident.to_string())),
            UseTree::Rename(rename) => found.push((with(rename.ident.to_string()), rename.rename.to_string())),
            UseTree::Glob(_) => found.push((before.to_vec(), "*".to_owned())),
            UseTree::Group(group) => group.items.iter().for_each(|tree| walk(tree, before, found)),
        }
    }
    let mut found = Vec::new();
    walk(&item.tree, &[], &mut found);
    found
}

/// A path from the crate's root; `None` if it leads out of the crate.
fn absolute(module: &Module, path: &[String]) -> Option<Module> {
    let mut at = module.clone();
    let (first, mut rest) = path.split_first()?;
    match first.as_str() {
        "crate" => at.clear(),
        "self" => {}
        "super" => drop(at.pop()),
        // A module of the file's own, or another crate: told apart by whether there is such a module.
        _ => return Some([module.as_slice(), path].concat()).filter(|_| first.starts_with(char::is_lowercase)),
    }
    while let Some((next, further)) = rest.split_first().filter(|(next, _)| next.as_str() == "super") {
        let _ = next;
        at.pop();
        rest = further;
    }
    at.extend(rest.iter().cloned());
    Some(at)
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string().starts_with("test"),
        Meta::Path(path) => path.is_ident("test"),
        Meta::NameValue(_) => false,
    })
}
