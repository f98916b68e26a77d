"""What people look at: HTML pages, drawings, tables."""
