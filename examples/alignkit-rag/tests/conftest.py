pytest_plugins = ["alignkit.testing"]
