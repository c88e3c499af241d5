"""Render the report's model as one HTML page with inline SVG charts."""
