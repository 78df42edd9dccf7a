"""How bytes leave for one client. A transport knows no broker."""
