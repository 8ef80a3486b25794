"""The loss curve that plans are scored with."""

from serving.autoscaler.shadow_fleets import Foresight, Shadows, fed, retold


def test_months_without_a_request_leave_a_loss_curve_that_can_be_read() -> None:
    shadows = fed(retold(Shadows(), 2.0, 1.0), 20.0, 10.0, 5.0)
    for _ in range(10):
        shadows = retold(shadows, 1e-4, 1e-60)
    found = Foresight(1e-4, shadows)
    assert 0.0 < found.share_lost(0.5e-4, 1e-4) <= 1.0
    assert found.usd_per_request(1.0, 1.0, 180.0) > 0.0
