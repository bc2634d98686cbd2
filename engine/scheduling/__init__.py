"""Requests that come and go while others run, and share the forwards of their steps."""
