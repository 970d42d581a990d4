"""Where label sets lie: folders, object stores, the Hub, web servers; what is far is cached."""
