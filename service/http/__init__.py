"""The HTTP interface: routes, request and answer schemas, errors on the wire, the console."""
