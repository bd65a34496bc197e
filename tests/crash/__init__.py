"""What a power cut, a crash or a failing disk may leave, and that nothing acknowledged is lost by it."""
