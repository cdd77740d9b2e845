"""Support for programs that run the library inside WSGI servers and gunicorn."""
