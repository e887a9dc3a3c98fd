"""What a build may demand of its bundle: gates, which judge a run and never steer it."""
