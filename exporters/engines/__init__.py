"""Runtimes as they are called within a confined process; nothing else imports these."""
