"""The HTTP interface: routes, schemas of requests and responses, error responses, the console."""
