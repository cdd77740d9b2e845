"""Life inside of other people's programs: WSGI servers and gunicorn."""
