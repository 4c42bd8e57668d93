"""The artifact store: content-addressed folders of finished work, committed atomically.

`artifacts` is the only module that writes final paths: it computes digests, commits and verifies
artifact folders. `locks` keeps two processes from building one. `remote` copies committed
artifacts to and from object storage. `hashes` caches the SHA-256 of large files. `journal` is the
append-only metrics file of a stage. `databases` looks after the SQLite files of Prefect and MLflow
beside the store.
"""
