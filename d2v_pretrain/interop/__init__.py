"""Reading and writing the reference's configurations, parameter names and files."""
