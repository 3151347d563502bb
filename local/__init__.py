"""The service on one computer: no Docker engine, no AWS account, no database server."""
