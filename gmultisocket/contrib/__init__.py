"""Support for programs that run the library inside WSGI servers and gunicorn, and for those who watch them."""
