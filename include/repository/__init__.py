"""Where backups live: layout, manifest, catalog, packs. The bucket is the truth; `docs/format.md` specifies it."""
